"""Figures of merit as pure functions, and the intervals around them.

Images are [N,3,H,W] in [0,1]; every image figure comes back per image, [N], so that intervals and paired
differences can be made from it afterwards.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def to_8bit(images: Tensor) -> Tensor:
    """Clip to [0,1] and round to the 256 levels of a saved picture: what is measured is what a user would see."""
    return images.clamp(0, 1).mul(255).round().div(255)


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB over all three channels, [N]; identical images give infinity."""
    return -10 * (images.double() - truth.double()).square().mean((1, 2, 3)).log10()


def ssim(images: Tensor, truth: Tensor, side: int = 11, sigma: float = 1.5) -> Tensor:
    """Structural similarity [N], mean over the RGB channels and over the windows that lie inside the picture.

    Wang et al. 2004: Gaussian window of 11 px and sigma 1.5, K1 = 0.01, K2 = 0.03, dynamic range 1.
    """
    reach = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    row = torch.exp(-0.5 * (reach / sigma) ** 2)
    row = (row / row.sum()).to(images)

    def blur(x: Tensor) -> Tensor:
        flat = x.flatten(0, 1).unsqueeze(1)  # every channel alone
        return F.conv2d(F.conv2d(flat, row.view(1, 1, 1, -1)), row.view(1, 1, -1, 1)).view(*x.shape[:2], -1)

    mu_a, mu_b = blur(images), blur(truth)
    var_a, var_b = blur(images * images) - mu_a * mu_a, blur(truth * truth) - mu_b * mu_b
    cov = blur(images * truth) - mu_a * mu_b
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * mu_a * mu_b + c1) * (2 * cov + c2) / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2))
    return value.mean((1, 2))


def frechet(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """Frechet distance of two sets of features [N,D] and [M,D], each taken as a Gaussian (Heusel et al. 2017)."""
    return frechet_of_moments(*moments(features_a), *moments(features_b))


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and covariance [D,D] of features [N,D], in double precision."""
    wide = features.astype(np.float64)
    return wide.mean(0), np.atleast_2d(np.cov(wide, rowvar=False))


def frechet_of_moments(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """|mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)), by two symmetric eigenvalue problems."""
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    mixed = np.linalg.eigvalsh(root @ cov_b @ root)
    trace = np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(mixed.clip(0)).sum()
    return max(0.0, float(np.square(mean_a - mean_b).sum() + trace))


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float

    def apart_from(self, other: "Interval") -> bool:
        """True where the two intervals do not touch."""
        return self.low > other.high or other.low > self.high

    def to_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


class Bootstrap:
    """Resamples identities, not images: two photographs of one person are not two independent samples.

    The same ``draws`` resamples serve every figure, so the difference of two models is resampled in pairs (Efron &
    Tibshirani 1993, percentile intervals).
    """

    def __init__(self, draws: int, seed: int):
        self.draws, self.seed = draws, seed

    def _weights(self, groups: int) -> np.ndarray:
        """[draws,groups]: how often every identity is drawn."""
        rng = np.random.default_rng(self.seed)
        return rng.multinomial(groups, np.full(groups, 1 / groups), size=self.draws).astype(np.float64)

    def mean(self, values: np.ndarray, groups: np.ndarray) -> Interval:
        """Mean of ``values`` [N], of the identities ``groups`` [N]; not-a-number where there are none."""
        if not len(values):
            return Interval(float("nan"), float("nan"), float("nan"))
        _, place = np.unique(groups, return_inverse=True)
        sums = np.bincount(place, weights=values)
        counts = np.bincount(place)
        weights = self._weights(len(counts))
        means = (weights @ sums) / (weights @ counts)
        low, high = np.percentile(means, [2.5, 97.5])
        return Interval(float(np.mean(values)), float(low), float(high))


@dataclass(frozen=True, eq=False)
class Pairs:
    """Photographs of the same person: ``probe[k]`` is restored, ``gallery[k]`` is another, undegraded one."""

    probe: np.ndarray
    gallery: np.ndarray

    def __len__(self) -> int:
        return len(self.probe)


def same_person_pairs(identities: np.ndarray, per_identity: int, seed: int) -> Pairs:
    """At most ``per_identity`` ordered pairs of each person, drawn by ``seed``: a few people have hundreds of them."""
    rng = np.random.default_rng(seed)
    probe, gallery = [], []
    for who in np.unique(identities):
        rows = np.flatnonzero(identities == who)
        first, second = (~np.eye(len(rows), dtype=bool)).nonzero()
        chosen = rng.permutation(len(first))[:per_identity]
        probe.append(rows[first[chosen]])
        gallery.append(rows[second[chosen]])
    return Pairs(np.concatenate(probe), np.concatenate(gallery))


def impostor_similarities(probe: np.ndarray, gallery: np.ndarray, identities: np.ndarray) -> np.ndarray:
    """Cosines of all pairs of different persons; ``probe`` and ``gallery`` [N,D] are unit vectors of the same rows."""
    return (probe @ gallery.T)[identities[:, None] != identities[None]]


def threshold_at(impostors: np.ndarray, far: float) -> float:
    """The cosine that a share ``far`` of the impostor pairs reaches."""
    return float(np.quantile(impostors, 1 - far))
