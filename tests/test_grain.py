"""Grain that is there is put back over a restored face; none is made up."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from idcodeformer.compositing.grain import (
    _at_frequencies,
    _Blocks,
    _noise,
    _passed,
    _repeats,
    _white,
    add_grain,
    surroundings,
)
from idcodeformer.files.reading import read
from idcodeformer.geometry.templates import ffhq_template
from idcodeformer.pipeline import FacePipeline
from idcodeformer.restoration.tone import luminance
from idcodeformer.types import Face, RestoreOptions

SIDE = 400
CRUSH = (slice(None), slice(150, 250), slice(150, 250))  # well inside the pasted square


class Smooth:
    """A restorer that takes grain away, as networks do."""

    size = 128

    def __call__(self, pixels: Tensor, options=None, progress=None) -> Tensor:
        return F.avg_pool2d(F.pad(pixels, (4, 4, 4, 4), mode="replicate"), 9, 1)


@pytest.fixture(scope="module")
def clean(photos: Path) -> Tensor:
    """A soft monochrome portrait [3,400,400]."""
    luma = read(photos / "portrait.jpg").frames.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    small = F.interpolate(luma, (SIDE // 3, SIDE // 3), mode="bicubic", antialias=True)
    return F.interpolate(small, (SIDE, SIDE), mode="bicubic")[0] * 0.7 + 0.15


def grain(kind: str, levels: float) -> Tensor:
    """[1,400,400] of that standard deviation."""
    noise = torch.randn(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    if kind == "soft":
        noise = F.avg_pool2d(noise, 3, 1, 1)
    if kind == "halftone":
        axis = torch.arange(float(SIDE)) * 2 * torch.pi / 6
        noise = (torch.cos(axis + axis[:, None]) * torch.cos(axis - axis[:, None]))[None, None]
    return noise[0] / noise.std() * levels / 255


def restored(image: Tensor, **options) -> Tensor:
    middle = torch.tensor([199.5, 215.0])
    points = ((torch.tensor(ffhq_template(512)) - 255.5) * 190 / 512 + middle).float()
    face = Face(torch.tensor([140.0, 150, 260, 280]), 0.9, points)
    options = RestoreOptions(mask_shape="square", large_faces="restore", **options)
    return FacePipeline(Smooth())([image], options, faces=[(face,)]).images[0]


def fine(image: Tensor) -> Tensor:
    """[H,W] luminance without what changes slowly."""
    luma = image.mean(0)[None, None]
    return (luma - F.avg_pool2d(F.pad(luma, (3, 3, 3, 3), mode="replicate"), 7, 1))[0, 0]


def rms(plane: Tensor) -> float:
    return float(plane[150:250, 150:250].square().mean().sqrt()) * 255


@pytest.mark.parametrize(
    ("kind", "levels", "within"), [("white", 4, 0.15), ("white", 12, 0.15), ("halftone", 10, 0.15), ("soft", 10, 0.25)]
)
def test_a_restored_square_has_the_grain_of_its_picture(clean: Tensor, kind: str, levels: float, within: float) -> None:
    noise = grain(kind, levels)
    image = (clean + noise).clamp(0, 1)
    without, with_it = (restored(image, grain=mode) for mode in ("off", "auto"))
    wanted, added = rms(fine(noise.expand(3, -1, -1))), rms(fine(with_it - without))
    left = rms(fine(without - restored(clean, grain="off")))  # of the input's grain, through restoring
    assert left < 0.5 * wanted
    assert abs((added**2 + left**2) ** 0.5 / wanted - 1) < within
    same = torch.corrcoef(torch.stack([fine(with_it - without)[CRUSH[1:]].flatten(), fine(noise)[CRUSH[1:]].flatten()]))
    assert abs(float(same[0, 1])) < 0.1 if kind != "halftone" else float(same[0, 1]) > 0.95  # measured, not copied


def screened(image: Tensor, period: float, angle: float) -> Tensor:
    """The picture [3,H,W] as a printed one: dots that grow as it darkens, somewhat softened by the scanner."""
    y, x = torch.meshgrid(torch.arange(float(SIDE)), torch.arange(float(SIDE)), indexing="ij")
    turn = torch.tensor(angle).deg2rad()
    across, down = (x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin())
    dots = 0.5 + 0.25 * (torch.cos(across * 2 * torch.pi / period) + torch.cos(down * 2 * torch.pi / period))
    return F.avg_pool2d(torch.sigmoid((image - dots) / 0.15)[None], 3, 1, 1)[0]


@pytest.mark.parametrize(("period", "angle"), [(4.3, 45), (5.5, 30), (3.4, 15), (6, 0)])
def test_the_dots_of_a_print_stand_where_they_stood(clean: Tensor, period: float, angle: float) -> None:
    """A screen of the same spectrum in other places would be a patch as clear as none at all."""
    image = screened(clean, period, angle)
    without, with_it = (restored(image, grain=mode)[CRUSH] for mode in ("off", "auto"))
    wanted = fine(image)[CRUSH[1:]]
    lost, left = (float((fine(one) - wanted).std() / wanted.std()) for one in (without, with_it))
    assert lost > 0.9 and left < 0.3


def in_colour(image: Tensor) -> Tensor:
    bars = (torch.arange(SIDE) // 20 % 2) * 0.12
    return (image + torch.stack([bars, -bars, bars * 0])[:, None]).clamp(0, 1)


@pytest.mark.parametrize("period", [4.3, 5.5])
def test_the_dots_of_a_colour_print_come_back_too(clean: Tensor, period: float) -> None:
    plates = [screened(plate[None], period, angle) for plate, angle in zip(in_colour(clean), (15, 75, 45))]
    image = torch.cat(plates)
    without, with_it = (restored(image, grain=mode)[CRUSH] for mode in ("off", "auto"))
    wanted = fine(luminance(image[None]))[CRUSH[1:]]
    lost, left = (float((fine(luminance(one[None])) - wanted).std() / wanted.std()) for one in (without, with_it))
    assert lost > 0.9 and left < 0.4
    crop = image[:, 100:228, 150:278]
    out, bare = (FacePipeline(Smooth()).restore_aligned(crop[None], RestoreOptions(grain=mode))[0] for mode in
                 ("auto", "off"))  # fmt: skip
    assert float((fine(out[0]) - fine(bare[0]))[16:-16, 16:-16].std()) > 3 / 255


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_crop_half_restored_keeps_its_dots(clean: Tensor, strength: float) -> None:
    crop = screened(clean, 4.3, 45)[:, 100:228, 150:278]
    out, _ = FacePipeline(Smooth()).restore_aligned(crop[None], RestoreOptions(strength=strength))
    wanted = fine(crop)[16:-16, 16:-16]
    assert float((fine(out[0])[16:-16, 16:-16] - wanted).std() / wanted.std()) < 0.2


def test_a_railing_behind_is_no_screen(clean: Tensor) -> None:
    image = clean.clone()
    image[:, :, :120] += ((torch.arange(120) % 5 < 2) * 0.25)[None, None]
    bare = restored(image, grain="off")
    assert rms(fine(restored(image, grain="on") - bare)) < 0.5


@pytest.mark.parametrize("side", [SIDE, 110])
def test_no_grain_is_made_up(clean: Tensor, side: int) -> None:
    image = F.interpolate(clean[None], (side, side), mode="area")[0]
    canvas = F.avg_pool2d(image[None], 5, 1, 2, count_include_pad=False)[0]
    box = (side // 4, side // 4, side * 3 // 4, side * 3 // 4)
    share = torch.zeros(1, side, side)
    share[:, box[1] : box[3], box[0] : box[2]] = 1
    before = canvas.clone()
    add_grain(canvas, surroundings(image, box), share, box, 1)
    assert float((canvas - before).abs().max()) * 255 < 0.5


def test_grain_behind_a_clean_face_is_not_put_on_it(clean: Tensor) -> None:
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    behind = ((x - 200).square() + (y - 215).square() > 95**2).float()
    image = clean + grain("white", 12) * behind
    assert rms(fine(restored(image, grain="on") - restored(image, grain="off"))) < 0.15 * 12


def test_auto_asks_for_monochrome_and_off_for_nothing(clean: Tensor) -> None:
    tint = torch.tensor([1.0, 0.8, 0.6])[:, None, None]
    bars = (torch.arange(SIDE) // 20 % 2) * 0.12
    colour = (clean + torch.stack([bars, -bars, bars * 0])[:, None] + grain("white", 10)).clamp(0, 1)
    assert torch.equal(restored(colour, grain="auto"), restored(colour, grain="off"))
    assert not torch.equal(restored(colour, grain="on"), restored(colour, grain="off"))
    sepia = (clean + grain("white", 10)).clamp(0, 1) * tint
    assert not torch.equal(restored(sepia), restored(sepia, grain="off"))


def test_the_same_picture_gets_the_same_grain_and_each_face_its_own(clean: Tensor) -> None:
    image = (clean + grain("white", 10)).clamp(0, 1)
    assert torch.equal(restored(image), restored(image))
    one, other = (_white(256, seed, torch.device("cpu")) for seed in (0, 1))
    assert abs(float((one * other).mean())) < 0.02 and abs(float(one.std()) - 1) < 0.02
    for step in (1, 256):  # neighbours in a row and in a column know nothing of each other
        assert abs(float((one.flatten()[:-step] * one.flatten()[step:]).mean())) < 0.02


@pytest.mark.parametrize(("mode", "strength"), [("auto", 1.0), ("on", 0.5), ("off", 1.0)])
def test_an_aligned_crop_gets_the_grain_it_had(clean: Tensor, mode: str, strength: float) -> None:
    pipeline, options = FacePipeline(Smooth()), RestoreOptions(grain=mode, strength=strength)
    crops = torch.stack([clean[:, 100:228, 150:278], (clean + grain("white", 10))[:, 100:228, 150:278].clamp(0, 1)])
    out, _ = pipeline.restore_aligned(crops, options)
    bare, _ = pipeline.restore_aligned(crops, RestoreOptions(grain="off", strength=strength))
    assert torch.equal(out[0], bare[0])  # none is made up
    added = float((out[1] - bare[1])[:, 8:-8, 8:-8].mean(0).std()) * 255
    assert added == 0 if mode == "off" else 0.85 < added / (10 * strength) < 1.1


def waves(cycles: float, level: float = 0.1) -> Tensor:
    """[96,96]: that many cycles in 16 px, of this amplitude, along x."""
    return 0.5 + level * torch.cos(torch.arange(96) * 2 * torch.pi * cycles / 16).expand(96, -1)


def test_a_spectrum_sums_up_to_the_variance_of_what_is_fine() -> None:
    blocks = _Blocks(waves(4))
    assert torch.allclose(blocks.spectra.sum((1, 2)), torch.full((len(blocks.spectra),), 0.1**2 / 2), rtol=0.02)
    assert torch.allclose(blocks.level, torch.full_like(blocks.level, 0.5), atol=1e-3)
    assert int(blocks.spectra[0].argmax()) in (4, 12)  # at its frequency
    assert float(_Blocks(waves(0.5)).spectra.sum((1, 2)).max()) < 0.02 * 0.1**2  # shading is no grain


def test_frequencies_keep_their_values_where_a_finer_transform_has_them_too() -> None:
    values = torch.rand(16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(_at_frequencies(values, (16, 16)), values, atol=1e-5)
    finer = _at_frequencies(values, (32, 64))
    assert torch.allclose(finer[::2, ::4], values, atol=1e-5)
    assert torch.allclose(finer[1, ::4], (values[0] + values[1]) / 2, atol=1e-5)


def test_noise_has_the_variance_and_the_frequencies_it_is_asked_for() -> None:
    spectrum = torch.zeros(16, 16)
    spectrum[0, 4] = spectrum[0, 12] = 0.5e-3
    made = _noise(spectrum, 3, (700, 96))
    assert made.shape == (1, 700, 96) and float(made.var()) == pytest.approx(1e-3, rel=0.25)
    seen = torch.fft.fft2(made[0, :96, :96]).abs().square().mean(0)
    assert int(seen[:48].argmax()) in range(20, 29)  # 24 cycles in 96 px


def test_a_filter_passes_the_share_of_each_frequency() -> None:
    plane, share = waves(4) + waves(6, 0.05) - 0.5, torch.zeros(16, 16)
    share[:, [6, 10]] = 1.0
    noise = torch.randn(96, 70, generator=torch.Generator().manual_seed(4))
    assert torch.allclose(_passed(noise, torch.ones(16, 16)), noise, atol=1e-5)  # in its place
    inner = _passed(plane, share)[16:-16, 16:-16]
    assert torch.allclose(inner, (waves(6, 0.05) - 0.5)[16:-16, 16:-16], atol=0.004)
    assert torch.allclose(_passed(plane, share / 2)[16:-16, 16:-16], inner / 2, atol=1e-5)


def test_what_repeats_in_all_directions_is_a_pattern() -> None:
    y, x = torch.meshgrid(torch.arange(200.0), torch.arange(240.0), indexing="ij")
    dots = torch.cos(x * 2 * torch.pi / 5) + torch.cos(y * 2 * torch.pi / 5)
    noise = torch.randn(200, 240, generator=torch.Generator().manual_seed(1))
    assert float(_repeats(0.5 + 0.05 * dots, 0.0)) == 1 and float(_repeats(0.5 + 0.05 * dots + 0.02 * noise, 0.0)) == 1
    assert float(_repeats(0.5 + 0.05 * noise, 0.0)) == 0
    assert float(_repeats((x > 120) * 0.3 + 0.01 * noise, 0.0)) == 0  # an edge repeats along itself alone


def test_a_picture_too_small_for_blocks_gets_no_grain() -> None:
    for size, changed in (((31, 200), False), ((32, 200), True)):
        canvas = torch.full((3, *size), 0.5)
        before = 0.5 + 0.05 * torch.randn(*size, generator=torch.Generator().manual_seed(2))
        add_grain(canvas, before, None, (0, 0, size[1], size[0]), 1)
        assert bool((canvas != 0.5).any()) == changed
