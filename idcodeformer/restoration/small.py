"""Faces smaller than the network that show all that their pixels can hold: restoring would change them, not mend them.

A sharp picture has a certain power in its finest detail against the next coarser, at whatever scale; a blurred one has
less, a noisy one more. Both are looked at in the crop, reduced to the size that the face has in its picture. Why these
limits: docs/large-faces.md.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..geometry.resizing import resize

SHARP_AT_ITS_SIZE = 1.8  # ratio of the two bands: clean faces show 1.98 (median), those reduced to 1.5 px 1.67
_BLOCKS = 8  # along a side
QUARTILE = 0.88  # lower quartile over mean of the energy of white noise in such blocks
_SMOOTH = 16  # blocks that are looked at for noise
_NOISY = 1.85  # ratio of the bands there, where noise of 15 levels shows 2.2 to 2.8 and clean skin 1.6
_HEARD = 2.2 / 255  # rms of their fine band below which noise does not count
_BLOCKY = 0.21  # of ``is_blocky``: clean pictures show up to 0.09, JPEG of quality 50 0.15 to 0.2, of 15 0.28 to 0.36
VISIBLE = 0.002  # rms of the fine band below which nobody sees detail


def sharpness_at_its_size(pixels: Tensor, scales: Sequence[float]) -> Tensor:
    """[N] for crops [N,3,S,S] in [0,1] with ``scales`` picture px per crop px, below 1: ``SHARP_AT_ITS_SIZE`` and more
    for faces as sharp as their picture can show; 0 for noisy ones and those without visible detail."""
    side = pixels.shape[-1]
    found = [_sharpness(crop[None].float(), max(_BLOCKS, round(side * scale))) for crop, scale in zip(pixels, scales)]
    return torch.stack(found) if found else pixels.new_zeros(0)


def _sharpness(crop: Tensor, size: int) -> Tensor:
    luma = resize(crop, (size, size), "bicubic").mean(1, keepdim=True)
    broad = _blurred(luma)
    fine, next_band = (luma - broad).square(), (broad - _blurred(broad)).square()
    blocks = [F.adaptive_avg_pool2d(band, _BLOCKS).flatten() for band in (fine, next_band)]
    means = [band.mean() for band in blocks]
    # Noise lies in all blocks alike: without what the smoother quarter has of it, it does not pass for detail.
    even = [(band.mean() - band.quantile(0.25) / QUARTILE).clamp(min=1e-9) for band in blocks]
    sharp = torch.minimum(_ratio(*means), _ratio(*even))
    smooth = blocks[0].argsort()[:_SMOOTH]
    noise, under = (band[smooth].mean() for band in blocks)
    noisy = (_ratio(noise, under) > _NOISY) & (noise.sqrt() > _HEARD)
    return sharp.masked_fill(noisy | (means[0].sqrt() < VISIBLE), 0)


def part_of(image: Tensor, matrix: Tensor, side: int) -> Tensor:
    """The upright part of a picture [3,H,W] around a crop of ``side`` px, whose map [2,3] is picture -> crop."""
    linear, offset = (part.detach().cpu().double() for part in (matrix[:, :2], matrix[:, 2]))
    corners = torch.tensor([[0, 0], [side, 0], [0, side], [side, side]]).double() - 0.5
    places = torch.linalg.solve(linear, (corners - offset).T)
    (x0, y0), (x1, y1) = ((places.amin(1) + 0.5).floor().long().tolist(), (places.amax(1) + 0.5).ceil().long().tolist())
    return image[:, max(0, y0) : max(0, y1), max(0, x0) : max(0, x1)]


def is_blocky(part: Tensor) -> bool:
    """Whether a part [3,H,W] of a picture shows the 8-px blocks of strong JPEG compression, which restoring mends.

    At how many places the step between two pixels exceeds those beside it, along the one of eight columns (rows) where
    most do, against the other seven.
    """
    luma = part.float().mean(0)
    if min(luma.shape) < 24:
        return False
    return float(_steps(luma) + _steps(luma.T)) / 2 > _BLOCKY


def _steps(luma: Tensor) -> Tensor:
    step = (luma[:, 1:] - luma[:, :-1]).abs()
    peaks = (step[:, 1:-1] > torch.maximum(step[:, :-2], step[:, 2:])).float()
    shares = torch.stack([peaks[:, phase::8].mean() for phase in range(8)]).sort().values
    return shares[-1] - shares[:-1].mean()


def _ratio(fine: Tensor, broad: Tensor) -> Tensor:
    return (fine / (broad + 1e-9)).sqrt()


def _blurred(plane: Tensor) -> Tensor:
    """[1,1,H,W] under the binomial filter of 5 px."""
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=plane.device) / 16
    rows = F.conv2d(F.pad(plane, (2, 2, 0, 0), mode="replicate"), taps.view(1, 1, 1, 5))
    return F.conv2d(F.pad(rows, (0, 0, 2, 2), mode="replicate"), taps.view(1, 1, 5, 1))
