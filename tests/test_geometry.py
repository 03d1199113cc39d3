"""Templates, fits and warps: parity with the reference's alignment, and what the reference does not do."""
from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from idcodeformer.errors import BadOption
from idcodeformer.geometry import resizing
from idcodeformer.geometry.templates import (
    ARCFACE_112,
    FFHQ_512,
    arcface_crop,
    ffhq_template,
    fit_lmeds,
    fit_similarity,
    invert,
    rescale,
)  # fmt: skip
from idcodeformer.geometry.warping import REFERENCE_FILL, warp

GOLDENS = Path(__file__).parent / "data" / "alignment.npz"


def similarity(scale: float, degrees: float, x: float, y: float) -> torch.Tensor:
    c, s = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    return torch.tensor([[[c, -s, x], [s, c, y]]], dtype=torch.float32)


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth waves with some grain, [3,H,W] in 0..1."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = sum(np.sin(x * fx + y * fy + p) for fx, fy, p in rng.uniform(-0.4, 0.4, (6, 3)))
    channels = [0.5 + 0.07 * waves * k + 0.02 * rng.standard_normal(x.shape) for k in (1.0, -0.8, 0.6)]
    return torch.tensor(np.stack(channels), dtype=torch.float32).clamp(0, 1)


def render(function, matrix: torch.Tensor, size: int) -> np.ndarray:
    """A function of image points seen through the map image -> crop."""
    x, y = np.meshgrid(np.arange(size), np.arange(size))
    inverse = invert(matrix.double())[0].numpy()
    points = np.stack([x, y, np.ones_like(x)], -1) @ inverse.T
    return function(points[..., 0], points[..., 1])


# ---------------------------------------------------------------- templates and fits
def test_templates_scale_about_pixel_centres() -> None:
    assert np.allclose(ffhq_template(512), FFHQ_512)
    half = ffhq_template(256)
    assert np.allclose(half, (FFHQ_512 - 0.5) / 2, atol=1e-12)  # two pixels' middle is their common pixel's centre
    assert np.allclose(rescale(rescale(np.eye(2, 3), 0.25), 4.0), np.eye(2, 3))


def test_similarity_recovers_a_known_map_and_is_least_squares() -> None:
    matrix = similarity(2.5, 40, -12, 7)[0].double().numpy()
    points = ARCFACE_112
    assert np.allclose(fit_similarity(points, points @ matrix[:, :2].T + matrix[:, 2]), matrix, atol=1e-5)
    goldens = np.load(GOLDENS)
    for landmarks, expected in zip(goldens["landmarks"], goldens["lstsq_all5"], strict=True):
        assert np.abs(fit_similarity(landmarks, FFHQ_512) - expected).max() < 5e-3


def test_lmeds_is_the_reference_fit_on_all_goldens() -> None:
    goldens = np.load(GOLDENS)
    fits = fit_lmeds(torch.tensor(goldens["landmarks"]), 512)
    assert fits.dtype == torch.float32 and fits.shape == (14, 2, 3)
    assert np.abs(fits.numpy() - goldens["affine"]).max() < 5e-3


def test_lmeds_ignores_an_outlier_that_least_squares_follows() -> None:
    goldens = np.load(GOLDENS)
    number = list(goldens["names"]).index("one_outlier")
    landmarks, clean = goldens["landmarks"][number], list(goldens["names"]).index("frontal")
    crop = landmarks[:4] @ fit_lmeds(torch.tensor(landmarks)[None])[0, :, :2].double().numpy().T
    true = landmarks[:4] @ goldens["affine"][clean][:, :2].T
    assert np.abs((crop - crop.mean(0)) - (true - true.mean(0))).max() < 12
    squares = landmarks[:4] @ fit_similarity(landmarks, FFHQ_512)[:, :2].T
    assert np.abs((squares - squares.mean(0)) - (true - true.mean(0))).max() > 30


@pytest.mark.parametrize("size", [64, 128, 256, 1024])
def test_every_crop_size_shows_the_same_part(size: int) -> None:
    landmarks = torch.tensor(np.load(GOLDENS)["landmarks"])
    whole, other = fit_lmeds(landmarks, 512).double(), fit_lmeds(landmarks, size).double()
    points = torch.cat([landmarks, torch.ones(14, 5, 1)], -1).double()
    at_512, at_size = points @ whole.mT, points @ other.mT
    assert torch.allclose((at_512 + 0.5) * size / 512 - 0.5, at_size, atol=2e-3)


@pytest.mark.parametrize(
    "points",
    [np.full((5, 2), 7.0), np.zeros((5, 2)),
     np.stack([np.arange(5.0), np.arange(5.0)], 1), np.array([[3.0, 3.0]] * 4 + [[9.0, 4.0]])],
)  # fmt: skip
def test_degenerate_landmarks_give_a_finite_invertible_map(points: np.ndarray) -> None:
    fit = fit_lmeds(torch.tensor(points)[None])
    assert fit.isfinite().all() and fit[0, :, :2].det().abs() > 1e-12
    assert invert(fit).isfinite().all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_landmarks_that_are_no_numbers_are_refused(value: float) -> None:
    with pytest.raises(BadOption, match="NaN or infinity"):
        fit_lmeds(torch.full((1, 5, 2), value))


def test_invert_undoes() -> None:
    matrix = torch.cat([similarity(0.3, 100, 50, -4), similarity(7, -30, 1, 2)]).double()
    full = torch.cat([matrix, torch.tensor([[[0.0, 0, 1]]] * 2).double()], 1)
    back = torch.cat([invert(matrix), torch.tensor([[[0.0, 0, 1]]] * 2).double()], 1)
    assert torch.allclose(full @ back, torch.eye(3).double().expand(2, 3, 3), atol=1e-12)


# ---------------------------------------------------------------- warp
@pytest.mark.parametrize("index", range(14))
def test_warp_is_opencv_within_two_grey_levels(index: int) -> None:
    image = (picture(560, 640) * 255).round().to(torch.uint8)
    matrix = np.load(GOLDENS)["affine"][index]
    fill = [c * 255 for c in REFERENCE_FILL]
    wanted = cv2.warpAffine(image.permute(1, 2, 0).numpy(), matrix, (512, 512), borderValue=fill)
    crop = warp(image[None].float() / 255, torch.tensor(matrix)[None], torch.tensor([0]), 512, antialias=False)
    error = (crop[0].permute(1, 2, 0).numpy() * 255 - wanted).__abs__()
    assert error.max() <= 2 and error.mean() <= 0.5  # OpenCV rounds to 8 bits; ours stays float


def test_antialiasing_changes_nothing_where_the_map_enlarges() -> None:
    image, matrix = picture(90, 120)[None], similarity(1.7, 20, 3, 5)
    index = torch.tensor([0])
    assert torch.equal(warp(image, matrix, index, 64), warp(image, matrix, index, 64, antialias=False))


@pytest.mark.parametrize("scale", [1.0, 0.99, 0.8, 0.71, 0.5, 0.36, 0.34, 0.2, 0.11, 0.05])
def test_shrinking_keeps_the_place_and_removes_what_cannot_be_shown(scale: float) -> None:
    size, side = 32, int(40 / scale) + 40
    matrix = similarity(scale, 17, 5, -1)
    inverse = invert(matrix.double())[0]
    shift = torch.tensor([side / 2, side / 2]) - inverse @ torch.tensor([size / 2, size / 2, 1.0]).double()
    inverse[:, 2] += shift
    matrix = invert(inverse[None]).float()
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    # A ramp stays exactly where it was: the filter is symmetric about the sampled point.
    ramp = (0.5 + (0.7 * x - 0.4 * y) / (4 * side)).expand(3, -1, -1)
    crop = warp(ramp[None], matrix, torch.tensor([0]), size)
    wanted = render(lambda px, py: 0.5 + (0.7 * px - 0.4 * py) / (4 * side), matrix, size)
    assert np.abs(crop[0, 0].numpy() - wanted).max() < 1e-4
    # Stripes finer than the crop's pixels average out instead of turning into coarse ones.
    if scale <= 0.5:
        stripes = (0.5 + 0.5 * torch.cos(x * math.pi * 0.97)).expand(3, -1, -1)
        smooth = warp(stripes[None], matrix, torch.tensor([0]), size)
        aliased = warp(stripes[None], matrix, torch.tensor([0]), size, antialias=False)
        assert smooth.std() < 0.06 and aliased.std() > 3 * smooth.std()


def test_constant_border_is_the_reference_grey_and_reflect_mirrors() -> None:
    image = picture(20, 24)
    matrix = similarity(1, 0, 10, 10)  # the image begins at (10, 10) of the crop
    index = torch.tensor([0])
    constant = warp(image[None], matrix, index, 40)
    assert torch.allclose(constant[0, :, :9].mean((1, 2)), torch.tensor(REFERENCE_FILL), atol=1e-6)
    assert torch.allclose(constant[0, :, 10:30, 10:34], image, atol=1e-6)
    mirrored = warp(image[None], matrix, index, 40, border="reflect")
    assert torch.allclose(mirrored[0, :, 10:30, 10:34], image, atol=1e-5)
    assert torch.allclose(mirrored[0, :, 10:30, :10], image[:, :, :10].flip(2), atol=1e-5)
    assert torch.allclose(mirrored[0, :, :10, 10:34], image[:, :10].flip(1), atol=1e-5)


@pytest.mark.parametrize("border", ["constant", "reflect"])
def test_reading_only_a_region_changes_nothing(border: str) -> None:
    """Shrinking crops that stick out on any side, against the same crop of a picture that is padded by hand."""
    image, pad, factor = picture(200, 220, 3), 160, 0.25
    outside = torch.tensor(REFERENCE_FILL)[:, None, None]
    if border == "constant":
        padded = torch.nn.functional.pad(image - outside, (pad,) * 4) + outside
    else:
        padded = torch.tensor(np.pad(image.numpy(), ((0, 0), (pad, pad), (pad, pad)), mode="symmetric"))
    for x, y in ((-20, -15), (60, 70), (20, -60), (-90, 40), (0, 0)):
        inner = similarity(factor, 10, -x * factor + 5, -y * factor + 5)
        moved = inner.clone()
        moved[..., 2:] -= inner[..., :2] @ torch.full((1, 2, 1), float(pad))
        crop = warp(image[None], inner, torch.tensor([0]), 48, border)
        wanted = warp(padded[None], moved, torch.tensor([0]), 48, border)
        # Which pixels are averaged together depends on where the region begins, hence not to the last bit.
        assert (crop - wanted).abs().mean() < 2e-3 and (crop - wanted).abs().max() < 0.02


def test_many_faces_of_many_pictures_equal_one_by_one() -> None:
    images = [picture(80, 100, 1), picture(300, 50, 2), picture(64, 64, 3)]
    maps = ((2, 5, 0), (0.3, 80, 9), (0.9, 3, 1), (1.1, 0, 2), (0.1, 9, 3))
    matrices = torch.cat([similarity(scale, degrees, x, 4) for scale, degrees, x in maps])
    index = torch.tensor([2, 1, 0, 2, 1])
    together = warp(images, matrices, index, 40)
    for i in range(5):
        alone = warp([images[index[i]]], matrices[i : i + 1], torch.tensor([0]), 40)
        assert torch.allclose(together[i], alone[0], atol=1e-5)


def test_warp_of_nothing_and_of_far_away() -> None:
    image = picture(10, 10)[None]
    assert warp(image, torch.zeros(0, 2, 3), torch.zeros(0, dtype=torch.long), 16).shape == (0, 3, 16, 16)
    away = warp(image, similarity(1, 0, 5000, 5000), torch.tensor([0]), 16)
    assert torch.allclose(away[0].mean((1, 2)), torch.tensor(REFERENCE_FILL), atol=1e-6)
    single = warp(torch.full((1, 3, 1, 1), 0.25), similarity(1, 0, 8, 8), torch.tensor([0]), 16, border="reflect")
    assert torch.allclose(single, torch.full_like(single, 0.25), atol=1e-6)


@pytest.mark.parametrize("scale", [1.5, 0.6, 0.2])
def test_gradients_reach_the_picture(scale: float) -> None:
    image = picture(70, 70)[None].requires_grad_()
    middle = similarity(scale, 12, 0, 0)
    middle[..., 2] = 15.5 - middle[..., :2] @ torch.full((2,), 34.5)
    warp(image, middle, torch.tensor([0]), 32).sum().backward()
    weight = image.grad[0, 0]
    assert weight[35, 35] > 0 and weight.isfinite().all()
    # Every source pixel under the crop counts about scale^2 crop pixels.
    assert abs(float(weight[32:40, 32:40].mean()) / scale**2 - 1) < 0.15


# ---------------------------------------------------------------- ArcFace crop
def test_arcface_crop_puts_the_template_on_the_template() -> None:
    for side in (512, 128):
        y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        coordinates = torch.stack([x, y]).float()[None]
        crop = arcface_crop(coordinates)[0]
        matrix = fit_similarity(ffhq_template(side), ARCFACE_112)
        inverse = invert(torch.tensor(matrix)[None])[0]
        for px, py in ((20, 20), (56, 60), (90, 95)):
            wanted = inverse @ torch.tensor([px, py, 1.0]).double()
            assert torch.allclose(crop[:, py, px].double(), wanted, atol=0.05 * side / 128)


def test_arcface_crop_is_antialiased_and_differentiable() -> None:
    y, x = torch.meshgrid(torch.arange(512), torch.arange(512), indexing="ij")
    checker = ((x + y) % 2).float().expand(1, 3, -1, -1).clone().requires_grad_()
    crop = arcface_crop(checker)
    assert crop.shape == (1, 3, 112, 112) and crop.std() < 0.02
    crop.sum().backward()
    assert checker.grad[0, 0, 256, 256] > 0 and checker.grad[0, 0, 5, 5] == 0


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_large_pictures_are_resized_channel_by_channel_alike(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    pixels = torch.rand(2, 3, 37, 53, generator=torch.Generator().manual_seed(1))
    wanted = torch.nn.functional.interpolate(pixels, (20, 61), mode=mode, antialias=True)
    assert torch.equal(resizing.resize(pixels, (20, 61), mode), wanted)
    monkeypatch.setattr(resizing, "_WHOLE", 1)
    assert torch.equal(resizing.resize(pixels, (20, 61), mode), wanted)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(20, 31), (90, 120), (64, 31), (20, 77), (64, 77)])
def test_levels_of_8_bits_are_resized_strip_by_strip_as_floats_are(
    monkeypatch: pytest.MonkeyPatch, mode: str, size: tuple[int, int]
) -> None:
    monkeypatch.setattr(resizing, "_STRIP", 7 * 77)
    levels = torch.randint(0, 256, (2, 3, 64, 77), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found = resizing.resize(levels, size, mode)
    assert found.dtype == torch.float32 and torch.equal(found, resizing.resize(levels.float() / 255, size, mode))


@pytest.mark.parametrize("block", [1, 3, 4])
def test_means_over_blocks(block: int) -> None:
    planes = torch.rand(2, 3, 24, 36, generator=torch.Generator().manual_seed(2))
    wanted = torch.nn.functional.avg_pool2d(planes, block)
    torch.testing.assert_close(resizing.block_means(planes, block), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [0.2, 0.9, 3.0])
@pytest.mark.parametrize("border", ["constant", "reflect"])
def test_crops_of_8_bit_levels_are_those_of_floats(scale: float, border: str) -> None:
    levels = (picture(80, 90) * 255).round().byte()
    matrix = similarity(scale, 20, 5, -9)
    crops = [warp([image], matrix, torch.zeros(1, dtype=torch.int64), 32, border) for image in (levels, levels / 255)]
    assert torch.equal(*crops) and float(crops[0].std()) > 0.01
