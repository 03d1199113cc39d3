"""Toned monochrome prints are told from colour, hand-coloured ones among it, and keep their own tone."""
from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from idcodeformer.files.reading import read
from idcodeformer.restoration.tone import is_monochrome, luminance, match_gray, match_tone
from idcodeformer.types import RestoreOptions

TONES = {  # RGB of luminance 0, 1/2 and 1
    "sepia": ((0.12, 0.06, 0.03), (0.62, 0.45, 0.28), (1.0, 0.95, 0.82)),
    "cyanotype": ((0.0, 0.08, 0.22), (0.15, 0.42, 0.66), (0.96, 0.98, 0.95)),
    "split": ((0.03, 0.06, 0.14), (0.40, 0.44, 0.50), (1.0, 0.97, 0.84)),
    "faded": ((0.35, 0.27, 0.24), (0.66, 0.58, 0.47), (0.93, 0.88, 0.72)),
}


@pytest.fixture(scope="module")
def still(photos: Path) -> Tensor:
    """An aligned colour photograph [1,3,128,128]."""
    frames = read(photos / "people" / "037" / "neutral.jpg").frames
    return F.interpolate(frames, (128, 128), mode="bicubic", antialias=True).clamp(0, 1)


def toned(pixels: Tensor, name: str) -> Tensor:
    """A print of ``pixels`` in that tone, whatever curve each channel has between its three points."""
    low, middle, high = (torch.tensor(rgb).view(1, 3, 1, 1) for rgb in TONES[name])
    luma = luminance(pixels)[:, None]
    return torch.where(luma < 0.5, torch.lerp(low, middle, 2 * luma), torch.lerp(middle, high, 2 * luma - 1))


def as_jpeg(pixels: Tensor, quality: int) -> Tensor:
    buffer = io.BytesIO()
    Image.fromarray((pixels[0] * 255).round().byte().permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)[None] / 255


def chroma(pixels: Tensor) -> Tensor:
    return (pixels - luminance(pixels)[:, None]) * 255


@pytest.mark.parametrize("name", TONES)
def test_a_toned_print_gets_its_own_tone_back(still: Tensor, name: str) -> None:
    """A coloured result under it: lips and eyes of the network's colour do not show."""
    noise = torch.randn(1, 1, 128, 128, generator=torch.Generator().manual_seed(1)) * 6 / 255
    scan = as_jpeg(toned((still + noise).clamp(0, 1), name), 75)
    assert bool(is_monochrome(scan)[0])
    right = toned(still, name)
    coloured = (right + still - luminance(still)[:, None]).clamp(0, 1)
    matched = match_tone(coloured, scan, RestoreOptions())
    loose = match_tone(coloured, scan, RestoreOptions(gray="off", w=0))
    wrong, before = (float((chroma(one) - chroma(right)).square().mean().sqrt()) for one in (matched, loose))
    assert wrong < 2.5 and wrong < 0.5 * before


def test_a_print_yellowed_at_one_side_keeps_that(still: Tensor) -> None:
    share = torch.linspace(0, 0.6, 128).view(1, 1, 1, 128)
    scan = as_jpeg(torch.lerp(toned(still, "split"), torch.tensor([0.85, 0.72, 0.5]).view(1, 3, 1, 1), share), 75)
    assert bool(is_monochrome(scan)[0])
    matched = match_tone(still, scan, RestoreOptions())
    assert (chroma(matched) - chroma(scan)).square().mean().sqrt() < 3


@pytest.mark.parametrize("name", ["sepia", "faded"])
@pytest.mark.parametrize("strength", [0.4, 0.8])
def test_hand_coloured_lips_and_cheeks_are_colour(still: Tensor, name: str, strength: float) -> None:
    axis = (torch.arange(128) + 0.5) / 128
    painted = toned(still, name)
    cheek, lip = (0.9, 0.55, 0.5), (0.7, 0.2, 0.22)
    for x, y, size, colour in ((0.36, 0.62, 0.08, cheek), (0.64, 0.62, 0.08, cheek), (0.5, 0.735, 0.06, lip)):
        spot = torch.exp(-(((axis[None] - x) / size) ** 2 + ((axis[:, None] - y) / size) ** 2)) * strength
        painted = torch.lerp(painted, torch.tensor(colour).view(1, 3, 1, 1), spot)
    scan = as_jpeg(painted, 75)
    assert not bool(is_monochrome(scan)[0])
    assert torch.equal(match_gray(still, scan), still)


def test_a_colour_photograph_is_colour(still: Tensor) -> None:
    assert not bool(is_monochrome(still)[0])
    cast = still * torch.tensor([1.0, 0.85, 0.6]).view(1, 3, 1, 1)
    assert not bool(is_monochrome(as_jpeg(cast, 60))[0])
