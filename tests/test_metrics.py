"""Figures of merit against their definitions, and intervals that cover what they should."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from training.metrics import (
    Bootstrap,
    Interval,
    frechet,
    impostor_similarities,
    psnr,
    same_person_pairs,
    ssim,
    threshold_at,
    to_8bit,
)


def images(side: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2, 3, side, side, generator=generator)
    return a, (a + 0.1 * torch.randn(a.shape, generator=generator)).clamp(0, 1)


def test_psnr_of_a_known_error() -> None:
    a = torch.full((1, 3, 8, 8), 0.5)
    assert float(psnr(a + 0.1, a)) == pytest.approx(20.0, abs=1e-4)
    assert float(psnr(a, a)) == float("inf")


def test_ssim_is_wangs_formula_window_by_window() -> None:
    a, b = images(16)
    reach = np.arange(11) - 5
    row = np.exp(-(reach**2) / (2 * 1.5**2))
    window = np.outer(row, row) / row.sum() ** 2
    values = []
    for channel in range(3):  # the slow way, as the paper has it
        x, y = a[0, channel].double().numpy(), b[0, channel].double().numpy()
        for top in range(6):
            for left in range(6):
                p, q = (z[top : top + 11, left : left + 11] for z in (x, y))
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                cov = (window * (p - mp) * (q - mq)).sum()
                top_part = (2 * mp * mq + 1e-4) * (2 * cov + 9e-4)
                values.append(top_part / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    assert float(ssim(a, b)[0]) == pytest.approx(np.mean(values), abs=1e-5)
    torch.testing.assert_close(ssim(a, a), torch.ones(2))


def test_to_8bit_is_what_a_file_would_hold() -> None:
    levels = to_8bit(torch.tensor([-0.2, 0.1, 0.5, 1.3])) * 255
    torch.testing.assert_close(levels, torch.tensor([0.0, 26.0, 128.0, 255.0]))


def test_frechet_of_known_gaussians() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((40_000, 2))
    b = rng.standard_normal((40_000, 2)) * [2.0, 3.0] + [1.0, -2.0]
    assert frechet(a, b) == pytest.approx(1 + 4 + (2 - 1) ** 2 + (3 - 1) ** 2, rel=0.03)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_with_correlated_features() -> None:
    """Against the textbook form with a matrix square root by eigenvalues of the plain product."""
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((500, 4)) @ rng.standard_normal((4, 4)), rng.standard_normal((500, 4))
    ca, cb = np.cov(a.T), np.cov(b.T)
    root = np.sqrt(np.linalg.eigvals(ca @ cb).real.clip(0)).sum()
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(ca) + np.trace(cb) - 2 * root
    assert frechet(a, b) == pytest.approx(expected, rel=1e-8)


def test_bootstrap_covers_the_mean_as_often_as_it_says() -> None:
    rng, hits = np.random.default_rng(2), 0
    for trial in range(100):
        values = rng.normal(1.0, 2.0, 60)
        found = Bootstrap(400, trial).mean(values, np.arange(60))
        hits += found.low <= 1.0 <= found.high
    assert 0.87 <= hits / 100 <= 0.99


def test_bootstrap_resamples_people_not_photographs() -> None:
    """Twenty copies of each person's value hold no more information than one."""
    values = np.random.default_rng(3).normal(size=30)
    one = Bootstrap(2000, 0).mean(values, np.arange(30))
    many = Bootstrap(2000, 0).mean(np.repeat(values, 20), np.repeat(np.arange(30), 20))
    assert many.high - many.low == pytest.approx(one.high - one.low, rel=0.01)
    assert many.value == pytest.approx(one.value)


def test_paired_differences_are_tighter_than_separate_intervals() -> None:
    rng = np.random.default_rng(4)
    first = rng.normal(0.5, 0.2, 100)
    second = first + 0.05 + rng.normal(0, 0.01, 100)
    bootstrap, groups = Bootstrap(1000, 0), np.arange(100)
    change = bootstrap.mean(second - first, groups)
    assert change.low > 0.04 and change.high < 0.06
    assert not bootstrap.mean(first, groups).apart_from(bootstrap.mean(second, groups))


def test_no_values_no_figure() -> None:
    assert np.isnan(Bootstrap(10, 0).mean(np.zeros(0), np.zeros(0, int)).value)


def test_intervals_apart() -> None:
    assert Interval(1, 0, 2).apart_from(Interval(4, 3, 5)) and not Interval(1, 0, 3).apart_from(Interval(4, 3, 5))


def test_pairs_are_of_one_person_and_limited() -> None:
    identities = np.array(["a"] * 10 + ["b"] * 2 + ["c"])
    pairs = same_person_pairs(identities, 5, seed=0)
    assert len(pairs) == 5 + 2 and (pairs.probe != pairs.gallery).all()
    assert (identities[pairs.probe] == identities[pairs.gallery]).all()
    assert len(set(zip(pairs.probe, pairs.gallery, strict=True))) == 7
    again = same_person_pairs(identities, 5, seed=0)
    assert (again.probe == pairs.probe).all()
    assert len(same_person_pairs(np.array(["a", "b"]), 5, 0)) == 0


def test_threshold_lets_through_the_share_it_promises() -> None:
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((300, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    impostors = impostor_similarities(vectors, vectors, np.arange(300))
    assert len(impostors) == 300 * 299
    assert (impostors >= threshold_at(impostors, 0.01)).mean() == pytest.approx(0.01, abs=0.001)
