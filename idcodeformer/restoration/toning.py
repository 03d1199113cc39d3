"""Toned monochrome pictures: how their chroma follows luminance, whether all of it does, and that tone put on again.

Sepia, cyanotype, split tones, faded prints and paper tints have one chroma for each luminance, whatever curve that is.
The curve is fitted to the means of a coarse grid of cells: the mean of a curve over a cell is the same sum of the means
of its basis, so JPEG's coarse chroma and noise average out without blurring luminance.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..geometry.resizing import block_means

_SIDE = 128  # px at which a crop is looked at
_CELLS = 16  # along a side
_KNOTS = 8  # of the curve, between the least and the greatest luminance
_TREND = 5  # terms of a slow change over the crop, as of a print that is yellowed at one side
_STRAIGHT = 0.02  # weight of the curve's second differences: where no pixel is, it goes on straight
_LEAST_RANGE = 0.02  # of luminance
# Levels of 255 in cells after the fit: toned prints have up to 1.3 (2.9 at JPEG quality 30), 9 colour faces in 10 more
# than 3.2. Lips are what is left in the others: |R - G| over them is up to 3.1 in toned prints, a hand-tinted mouth has
# from 3.4 (barely seen) to 19.
_LEFT = 2.6 / 255
_LIPS = 3.2 / 255
_MOUTH = (0.38, 0.62, 0.68, 0.80)  # x0, x1, y0, y1 in sides of an FFHQ crop


@dataclass(frozen=True, eq=False)
class Toning:
    """The chroma (R, G, B less luminance) that belongs to each luminance of crops [N,3,S,S]."""

    knots: Tensor  # [N,K,3]
    low: Tensor  # [N,1,1], luminance of the first knot
    high: Tensor  # [N,1,1], of the last
    monochrome: Tensor  # [N] bool: hardly any chroma is left beside it

    def chroma(self, luma: Tensor) -> Tensor:
        """[N,3,H,W] of luminance [N,H,W]; beyond the knots the last one's."""
        place = ((luma - self.low) / (self.high - self.low)).clamp(0, 1) * (_KNOTS - 1)
        first = place.floor().clamp(max=_KNOTS - 2)
        share, index = (place - first)[:, None], first.long().flatten(1)
        parts = []
        for channel in self.knots.unbind(2):
            here, following = channel.gather(1, index), channel.gather(1, index + 1)
            parts.append(torch.stack([here, following]).view(2, *luma.shape))
        low, high = torch.stack(parts, 2)
        return torch.lerp(low, high, share)


def fit_toning(pixels: Tensor, luma: Tensor) -> Toning:
    """The toning of crops [N,3,S,S] in [0,1] with luminance [N,S,S]. Decided on the device."""
    pixels, luma = reduced(pixels), reduced(luma)
    low, high = luma.amin((1, 2), keepdim=True), luma.amax((1, 2), keepdim=True)
    high = torch.maximum(high, low + _LEAST_RANGE)
    axis = torch.arange(_KNOTS, device=luma.device).view(1, _KNOTS, 1, 1)
    place = ((luma - low) / (high - low) * (_KNOTS - 1))[:, None]
    cells = min(_CELLS, luma.shape[-1])
    basis = _cells((1 - (place - axis).abs()).clamp(min=0), cells)
    basis = torch.cat([basis, _trend(cells, luma.device).expand(len(luma), -1, -1)], 2)
    chroma = _cells(pixels - luma[:, None], cells)
    turned = basis.transpose(1, 2)
    normal = turned @ basis + _penalty(luma.device) * cells**2
    weights = torch.linalg.inv_ex(normal)[0] @ (turned @ chroma)  # unlike solve it does not make the host wait
    left = chroma - basis @ weights
    error = left.square().sum((1, 2)) / (3 * (cells**2 - _KNOTS - _TREND))
    rows, columns = _mouth(cells)
    lips = left.unflatten(1, (cells, cells))[:, rows, columns].mean((1, 2))
    monochrome = (error.sqrt() <= _LEFT) & ((lips[:, 0] - lips[:, 1]).abs() <= _LIPS)
    return Toning(weights[:, :_KNOTS], low, high, monochrome)


def reduced(planes: Tensor) -> Tensor:
    """Crops [N,...,S,S] at the size at which they are looked at, where they are larger."""
    side = planes.shape[-1]
    if side <= _SIDE:
        return planes
    return block_means(planes, side // _SIDE) if side % _SIDE == 0 else F.adaptive_avg_pool2d(planes, _SIDE)


def _cells(planes: Tensor, cells: int) -> Tensor:
    """[N,cells * cells,C] means of planes [N,C,S,S]."""
    return F.adaptive_avg_pool2d(planes, cells).flatten(2).transpose(1, 2)


def _trend(cells: int, device: torch.device) -> Tensor:
    """[1,cells * cells,5] polynomials of second degree over the crop, without the constant."""
    axis = (torch.arange(cells, device=device) + 0.5) * (2 / cells) - 1
    y, x = torch.broadcast_tensors(axis[:, None], axis)
    return torch.stack([x, y, x * y, x * x - 1 / 3, y * y - 1 / 3], -1).view(1, -1, _TREND)


def _penalty(device: torch.device) -> Tensor:
    """[K + 5,K + 5], small, of bends of the curve; the least of everything keeps it invertible."""
    count = _KNOTS + _TREND
    whole = torch.eye(count, device=device)
    bends = whole[:_KNOTS - 2] - 2 * whole[1 : _KNOTS - 1] + whole[2:_KNOTS]
    return _STRAIGHT * bends.t() @ bends + 1e-5 * whole


def _mouth(cells: int) -> tuple[slice, slice]:
    """Rows and columns of the cells that have their middle in the mouth."""
    x0, x1, y0, y1 = (math.ceil(edge * cells - 0.5) for edge in _MOUTH)
    return slice(y0, max(y1, y0 + 1)), slice(x0, max(x1, x0 + 1))
