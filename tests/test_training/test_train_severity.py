"""Inputs from untouched to heavy, other photos of a person, and sets of several folders."""
from __future__ import annotations

import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from training.config import ConfigError, DataConfig, DegradationConfig, load_config
from training.data import degradation as module
from training.data.dataset import DataError, PairDataset, collate, list_images, to_unit
from training.data.degradation import degrade, sample_rng
from training.stages import build_stage
from training.stages.losses import IdentityLoss
from training.trainer import Trainer

RULE = DegradationConfig(7, [0.2, 2.0], 0.5, [1.0, 4.0], [0.0, 20.0], [30.0, 100.0])
IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


class Drawn(np.random.Generator):
    """A generator of known uniform numbers; its noise is 1 everywhere."""

    def __init__(self, *values):
        super().__init__(np.random.Philox(0))
        self.values = list(values)

    def uniform(self, low=0.0, high=1.0, size=None):
        taken = [low + (high - low) * self.values.pop(0) for _ in range(size or 1)]
        return np.array(taken) if size else taken[0]

    def standard_normal(self, shape, dtype=np.float32):
        return np.ones(shape, dtype)


@pytest.fixture
def applied(monkeypatch):
    """``applied(rule, *draws)`` -> sigma_x, sigma_y, side of the small image, shift by the noise, JPEG quality."""

    def run(rule, *draws):
        seen = {}
        monkeypatch.setattr(module, "gaussian_kernel", lambda s, x, y, a: seen.update(x=x, y=y) or np.ones((1, 1)))
        monkeypatch.setattr(module, "_jpeg", lambda im, q: seen.update(q=q, side=im.shape[1], level=im[0, 0, 0]) or im)
        generator = Drawn(*draws)
        degrade(np.full((64, 64, 3), 100, np.uint8), rule, generator)
        assert not generator.values
        return seen["x"], seen["y"], seen["side"], int(seen["level"]) - 100, seen["q"]

    return run


WIDE = DegradationConfig(7, [1.0, 3.0], 1.0, [1.0, 4.0], [2.0, 22.0], [40.0, 100.0])
# sigma_x, sigma_y, angle, anisotropic, downscale, noise, quality, gray
DRAWS = (0.5, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.5)


@pytest.mark.parametrize(
    "severity, power, where, expected",
    [
        ([1.0, 1.0], 1.0, None, (2.0, 3.0, 16, 22, 40)),  # off: what was drawn, by the same draws
        ([0.0, 1.0], 1.0, 1.0, (2.0, 3.0, 16, 22, 40)),
        ([0.0, 1.0], 1.0, 0.0, (1.0, 1.0, 64, 2, 100)),  # the mild end of everything
        ([0.0, 1.0], 1.0, 0.5, (1.5, 2.0, round(64 / 2.5), 12, 70)),
        ([0.0, 1.0], 2.0, 0.5, (1.25, 1.5, round(64 / 1.75), 7, 85)),
        ([0.5, 0.5], 1.0, 0.9, (1.5, 2.0, round(64 / 2.5), 12, 70)),
    ],
)
def test_severity_moves_every_value_from_its_mild_end(applied, severity, power, where, expected):
    rule = replace(WIDE, severity=severity, severity_power=power)
    assert applied(rule, *DRAWS, *([] if where is None else [0.99, where])) == pytest.approx(expected)


def test_an_untouched_share(applied):
    rule, count = replace(RULE, clean=0.3), 400
    same = [np.array_equal(degrade(IMAGE, rule, sample_rng(1, i)), IMAGE) for i in range(count)]
    assert np.mean(same) == pytest.approx(0.3, abs=0.06)
    first = degrade(IMAGE, replace(rule, clean=1.0), sample_rng(1, 0))
    assert np.array_equal(first, IMAGE) and first is not IMAGE
    assert not any(np.array_equal(degrade(IMAGE, RULE, sample_rng(1, i)), IMAGE) for i in range(20))


def test_defaults_leave_pixels_as_they_were():
    """Drawn by hand as before these keys: blur, downscale, noise, JPEG, resize back."""
    rng = sample_rng(5, 6)
    sigma_x, sigma_y = rng.uniform(0.2, 2.0, size=2)
    angle, aniso = rng.uniform(-np.pi, np.pi), rng.uniform()
    factor, noise, quality = (rng.uniform(*r) for r in (RULE.downscale, RULE.noise, RULE.jpeg))
    rng.uniform()
    if aniso >= 0.5:
        sigma_y, angle = sigma_x, 0.0
    kernel = module.gaussian_kernel(7, sigma_x, sigma_y, angle)
    out = cv2.filter2D(IMAGE.astype(np.float32), -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    out = cv2.resize(out, (round(32 / factor),) * 2, interpolation=cv2.INTER_LINEAR)
    out = np.clip(out + noise * rng.standard_normal(out.shape, dtype=np.float32), 0, 255)
    out = cv2.imencode(".jpg", np.rint(out)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, round(quality)])[1]
    out = cv2.imdecode(out, cv2.IMREAD_COLOR)[..., ::-1].astype(np.float32)
    out = cv2.resize(out, (32, 32), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(degrade(IMAGE, RULE, sample_rng(5, 6)), np.rint(np.clip(out, 0, 255)).astype(np.uint8))


@pytest.mark.parametrize(
    "word, key",
    [
        ("degradation.clean=1.5", "degradation.clean"),
        ("degradation.severity=[0.5,0.2]", "degradation.severity"),
        ("degradation.severity=[0,2]", "degradation.severity"),
        ("degradation.severity=[1]", "degradation.severity"),
        ("degradation.severity_power=0", "degradation.severity_power"),
        ("loss.identity_other=1.5", "loss.identity_other"),
    ],
)
def test_wrong_values_name_the_key(word, key):
    with pytest.raises(ConfigError, match=f"'{key}'"):
        load_config(None, [word])


# ---------------------------------------------------------------------------------------------- other photos
def test_the_other_photo_is_of_the_same_person_and_drawn_by_position(faces):
    config = DataConfig([str(faces)], size=64, hflip=True)
    plain, ours = PairDataset(config, RULE, 3), PairDataset(config, RULE, 3, others=True)
    assert "other" not in plain[0]
    photos = {(e.identity, i): PairDataset(config, None, 0)._read(i, []) for i, e in enumerate(ours.entries)}
    drawn = set()
    for position in range(48):
        sample, again = ours[position], PairDataset(config, RULE, 3, others=True)[position]
        assert all(torch.equal(sample[k], again[k]) for k in ("truth", "degraded", "other"))
        assert torch.equal(sample["degraded"], plain[position]["degraded"])  # its draws disturb no others
        index, person = sample["index"], ours.entries[sample["index"]].identity
        own = sample["truth"].permute(1, 2, 0).numpy()
        flipped = not np.array_equal(own, photos[person, index])
        other = sample["other"].permute(1, 2, 0).numpy()
        other = other[:, ::-1] if flipped else other
        (found,) = [k for k, pixels in photos.items() if np.array_equal(pixels, other)]
        assert found[0] == person and found[1] != index
        drawn.add((index, found[1]))
    assert len(drawn) > 16  # of 24 pairs


def test_without_another_photo_the_truth_stands_in(faces, tmp_path):
    paths = sorted(faces.rglob("*.png"))
    for folder, sources in (("ann", paths[:2]), ("bob", paths[2:3])):
        (tmp_path / folder).mkdir()
        for i, source in enumerate(sources):
            shutil.copy(source, tmp_path / folder / f"{i}.png")
    (tmp_path / "bob" / "broken.png").write_bytes(b"none")
    data = PairDataset(DataConfig([str(tmp_path)], size=64), RULE, 3, others=True)
    data.check()
    samples = [data[i] for i in range(8)]
    alone = {data.entries[s["index"]].identity: torch.equal(s["truth"], s["other"]) for s in samples}
    assert alone == {"ann": False, "bob": True}
    shutil.rmtree(tmp_path / "ann")
    (tmp_path / "bob" / "broken.png").unlink()
    with pytest.raises(DataError, match="identity_other"):
        PairDataset(DataConfig([str(tmp_path)], size=64), RULE, 3, others=True).check()


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 112 * 112, 8)

    def forward(self, x):
        return self.layer(x.flatten(1))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_target_is_the_mean_of_both_embeddings(share):
    torch.manual_seed(0)
    network = Flat()
    restored, truth, other = (torch.rand(2, 3, 64, 64) * 2 - 1 for _ in range(3))
    loss = IdentityLoss([network], other=share)
    a, b, c = (F.normalize(network(loss._crop(x, None, None))) for x in (restored, truth, other))
    expected = 1 - F.cosine_similarity(a, (1 - share) * b + share * c).mean()
    image, others = restored.clone().requires_grad_(), other.clone().requires_grad_()
    value = loss(image, truth, other=others)
    assert value.item() == pytest.approx(expected.item(), abs=1e-6)
    assert float(loss(restored, truth, other=truth)) == pytest.approx(float(IdentityLoss([network])(restored, truth)))
    (pull,) = torch.autograd.grad(value, image)
    assert others.grad is None
    stepped = F.normalize(network(loss._crop(restored - 2.0 * pull / pull.abs().max(), None, None)))
    target = (1 - share) * b + share * c  # the step leads towards this mean
    assert bool((F.cosine_similarity(stepped, target) > F.cosine_similarity(a, target)).all())


def test_stage_3_asks_for_other_photos_only_where_they_count(runs, arguments, base, faces, tmp_path, monkeypatch):
    runs["stage2"]
    words = [f"data.roots=[{faces}]", f"out={tmp_path}", *arguments["stage3_id"], "loss.gan=0", "val_images=1"]
    given = []
    original = IdentityLoss.forward

    def watched(self, restored, truth, positions=None, degraded=None, other=None):
        given.append((self.other, other))
        return original(self, restored, truth, positions, degraded, other)

    monkeypatch.setattr(IdentityLoss, "forward", watched)
    control = ["loss.identity=0", "loss.identity_other=1"]
    for more, expected in ((["loss.identity_other=0.5"], True), ([], False), (control, False)):
        trainer = Trainer(load_config(base, [*words, *more]))
        batch = collate([trainer.data[i] for i in range(4)])
        assert ("other" in batch) == expected
        given.clear()
        trainer.step(batch, 0)
        trainer.log.close()
        if expected:
            assert given[0][0] == 0.5 and torch.equal(given[0][1], to_unit(batch["other"]))
        assert all((other is not None) == expected for _, other in given)


def test_extra_folders_stand_beside_a_table_each_image_its_own_person(faces, tmp_path):
    paths = sorted(faces.rglob("*.png"))
    for place in ("lfw/ann/0.png", "lfw/ann/1.png", "lfw/bob/0.png", "a/x/deep/0.png", "b/deep/0.png", "b/deep/1.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(paths.pop(), tmp_path / place)
    (tmp_path / "lfw" / "images.csv").write_text(
        "path,identity,split\nann/0.png,ann,train\nann/1.png,ann,train\nbob/0.png,bob,test\n"
    )
    config = DataConfig(
        [str(tmp_path / "lfw")], list_csv="images.csv", split="train", size=64,
        extra=[str(tmp_path / "a" / "x"), str(tmp_path / "b")],
    )  # fmt: skip
    found = list_images(config)
    assert [str(e.path.relative_to(tmp_path)) for e in found] == [
        "lfw/ann/0.png", "lfw/ann/1.png", "a/x/deep/0.png", "b/deep/0.png", "b/deep/1.png",
    ]  # fmt: skip
    assert [e.identity for e in found[:2]] == ["ann", "ann"] and len({e.identity for e in found}) == 4


def test_the_stage_hands_the_share_to_the_loss(runs, arguments, base, faces):
    runs["stage2"]
    words = [f"data.roots=[{faces}]", *arguments["stage3_id"], "loss.identity_other=0.25"]
    assert build_stage(load_config(base, words)).identity.other == 0.25
