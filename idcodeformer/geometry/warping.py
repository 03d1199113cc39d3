"""Sampling faces out of pictures: many crops, many pictures, on the device, anti-aliased, differentiable."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..files.pixels import floats
from ..types import Border
from .resizing import block_means
from .templates import invert

REFERENCE_FILL = (132 / 255, 133 / 255, 135 / 255)  # RGB; the reference fills with BGR (135, 133, 132)
_LEAST_SCALE = 0.7  # below this pixels are averaged first; sampling coarser averages would show where blocks begin
_BAND = 1 << 14  # px that are worth a thread


@dataclass(frozen=True)
class _Plan:
    """How one crop is read: which pixels, averaged over ``factor`` x ``factor``, then smoothed."""

    inverse: tuple[tuple[float, float, float], ...]  # 2x3, crop -> image
    factor: int
    blur: float  # variance in averaged pixels squared by which they are smoothed
    region: tuple[int, int, int, int]  # x0, y0, x1, y1 of the pixels needed


def warp(
    images: Tensor | Sequence[Tensor],
    matrices: Tensor,
    image_index: Tensor,
    size: int,
    border: Border = "constant",
    fill: float | Sequence[float] = REFERENCE_FILL,
    antialias: bool = True,
) -> Tensor:
    """Crops [N,C,size,size] float32 of ``images`` ([B,C,H,W], or a sequence of [C,H,W] of any sizes).

    Images are float in [0,1], or uint8. ``matrices`` [N,2,3] map image -> crop, ``image_index`` [N] says from which
    image. Bilinear between pixel centres; where a map shrinks, the filter widens to the variance of a triangle filter
    of 1/scale (``antialias=False``: never): pixels are averaged in whole blocks, and kernels of three smooth them by
    what is missing to that, before sampling.
    Outside the image: ``fill`` per channel, blended in over one pixel as OpenCV does, or the mirrored image. Gradients
    flow to ``images``. No image is copied: pixels are averaged only inside the region a shrinking crop needs.
    """
    indices = image_index.tolist()
    first = images[0] if len(images) else torch.zeros(3, 1, 1)
    channels, device = first.shape[0], first.device
    if not indices:
        return torch.empty(0, channels, size, size, device=device)
    inverses = invert(matrices.detach().cpu().double()).tolist()
    constant = torch.as_tensor(fill, dtype=torch.float32, device=device).expand(channels)[:, None, None]
    outside = constant if border == "constant" else None
    crops = torch.empty(len(indices), channels, size, size, device=device)
    for i, (inverse, number) in enumerate(zip(inverses, indices)):
        image = images[number]
        crops[i] = _sample(image, _plan(inverse, size, image.shape[-2:], border, antialias), size, outside)
    return crops


def _plan(
    inverse: Sequence[Sequence[float]], size: int, image_size: Sequence[int], border: Border, antialias: bool
) -> _Plan:
    """Work out ``_Plan`` on the host, in plain numbers."""
    (xx, xy, _), (yx, yy, _) = inverse
    scale = 1 / math.sqrt(max(abs(xx * yy - xy * yx), 1e-12))
    factor = max(1, int(_LEAST_SCALE / scale)) if antialias else 1
    factor = min(factor, max(image_size))
    rest = min(1.0, scale * factor)
    # Variances in averaged pixels: triangle of 1/rest minus triangle of 1 minus the box that averaging was.
    blur = max(0.0, (1 / rest**2 - 1) / 6 - (1 - 1 / factor**2) / 12) if antialias else 0.0
    margin = factor * (3 + _passes(blur))
    height, width = image_size
    corners = [(x, y) for x in (-1, size) for y in (-1, size)]
    (low_x, high_x), (low_y, high_y) = (_extent([a * x + b * y + c for x, y in corners]) for a, b, c in inverse)
    x0, x1 = _span(low_x - margin, high_x + margin, width, factor, border)
    y0, y1 = _span(low_y - margin, high_y + margin, height, factor, border)
    return _Plan(tuple(tuple(row) for row in inverse), factor, blur, (x0, y0, x1, y1))


def _extent(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _span(low: float, high: float, length: int, factor: int, border: Border) -> tuple[int, int]:
    """First and last+1 pixel of an axis that are read, given the interval that is sampled."""
    if border == "reflect" and (low < 0 or high > length - 1):
        # What lies outside is seen again inside: read the whole side it mirrors.
        low, high = min(low, 2 * length - high), max(high, -low)
    start = min(max(0, math.floor(low)), length - 1)
    stop = max(start + 1, min(length, math.ceil(high) + 1))
    # Blocks are counted from a fixed pixel, so that they are the same whatever part is read. Where the image is
    # mirrored they end with it, so that its edge stays where it is; else the last may reach into what lies outside.
    start = max(0, start - (start - (length if border == "reflect" else 0)) % factor)
    return start, min(length, start + -(-(stop - start) // factor) * factor)


def _sample(image: Tensor, plan: _Plan, size: int, outside: Tensor | None) -> Tensor:
    """[C,size,size] of one image [C,H,W]. ``outside`` [C,1,1] is what lies around it; None = its mirror image."""
    x0, y0, x1, y1 = plan.region
    inside = x0 > 0 and y0 > 0 and x1 < image.shape[2] and y1 < image.shape[1]
    region = floats(image[:, y0:y1, x0:x1])
    if not inside and outside is not None:
        region = region - outside  # now what lies outside is zero, whichever filter reaches there
    mode = "replicate" if outside is None else "constant"
    if plan.factor > 1:
        region = _average(region, plan.factor, mode)
    passes = _passes(plan.blur)
    side = plan.blur / max(1, passes) / 2
    # A filter takes one pixel off every side. A mirror image gives it back; what lies outside is smoothed into besides.
    margin = 0 if inside else (1 if outside is None else 2)
    for _ in range(passes):
        region = _smooth(F.pad(region[None], (margin,) * 4, mode=mode)[0] if margin else region, side)
    grid = _grid(plan, passes * (margin - 1), size, region.shape[-2:], image.device)
    padding = "reflection" if outside is None else "zeros"
    crop = read_at(region, grid, padding)
    gain = side ** (2 * passes)  # that _smooth leaves out
    if inside or outside is None:
        return crop * gain if passes else crop
    return torch.add(outside, crop, alpha=gain)


def _average(region: Tensor, factor: int, mode: str) -> Tensor:
    """Mean over factor x factor pixels; ``mode`` says what is missing at the far edges (see F.pad)."""
    height, width = region.shape[-2:]
    padded = F.pad(region[None], (0, -width % factor, 0, -height % factor), mode=mode)
    return block_means(padded[0], factor)


def _passes(variance: float) -> int:
    """How often a kernel of three is applied: half a px^2, that of the binomial kernel, is the most for one pass."""
    return math.ceil(variance / 0.5)


def _smooth(region: Tensor, side: float) -> Tensor:
    """Convolve both axes with (1, 1 / side - 2, 1): side ** -2 times the kernel of three of variance 2 * side."""
    middle = 1 / side - 2
    rows = torch.add(region[:, :-2], region[:, 2:]).add_(region[:, 1:-1], alpha=middle)
    return torch.add(rows[:, :, :-2], rows[:, :, 2:]).add_(rows[:, :, 1:-1], alpha=middle)


def _grid(plan: _Plan, rim: int, size: int, shape: Sequence[int], device: torch.device) -> Tensor:
    """Where to sample the averaged region of ``shape`` = (height, width), ``rim`` px of it added to every side:
    [size,size,2], as F.grid_sample wants it."""
    axis = torch.arange(size, dtype=torch.float32, device=device)
    grid = torch.empty(size, size, 2, device=device)
    for k, (along_x, along_y, shift) in enumerate(plan.inverse):
        corner = plan.region[k] + 0.5 * (plan.factor - 1) - rim * plan.factor
        unit = 2 / (plan.factor * shape[1 - k])  # of the grid, per image px
        row = axis * (along_x * unit)
        column = axis * (along_y * unit) + ((shift - corner) * unit + 1 / shape[1 - k] - 1)
        torch.add(row, column[:, None], out=grid[..., k])
    return grid


def read_at(source: Tensor, grid: Tensor, padding: str) -> Tensor:
    """``source`` [C,H,W] read bilinearly at ``grid`` [h,w,2] (as F.grid_sample wants it): [C,h,w].

    On a CPU torch gives each thread whole items of a batch, so that a single one would run on one thread: the rows are
    cut into bands, which become as many items that share the source.
    """
    rows, columns = grid.shape[:2]
    bands = torch.get_num_threads() if source.device.type == "cpu" else 1
    bands = max(1, min(bands, rows * columns // _BAND))
    missing = -rows % bands
    parts = (F.pad(grid, (0, 0, 0, 0, 0, missing)) if missing else grid).unflatten(0, (bands, -1))
    read = F.grid_sample(source.expand(bands, -1, -1, -1), parts, "bilinear", padding, align_corners=False)
    return read.transpose(0, 1).flatten(1, 2)[:, :rows]
