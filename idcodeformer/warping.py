"""Sampling faces out of pictures: many crops, many pictures, on the device, anti-aliased, differentiable."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .geometry import invert
from .types import Border

REFERENCE_FILL = (132 / 255, 133 / 255, 135 / 255)  # RGB; the reference fills with BGR (135, 133, 132)
_TAPS = 3  # samples per output pixel and axis where the map shrinks
_LEAST_SCALE = 0.7  # below this the source is averaged over whole pixels first, which is cheaper than more taps
_CHUNK = 1 << 23  # sampled points held at once


@dataclass(frozen=True)
class _Plan:
    """How one crop is read: which pixels, averaged over ``factor`` x ``factor``, and with which spread of taps."""

    inverse: Tensor  # [2,3] float64 CPU, crop -> image
    factor: int
    spread: float  # distance between taps in averaged source pixels; 0 = one tap
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

    ``matrices`` [N,2,3] map image -> crop, ``image_index`` [N] says from which image. Bilinear between pixel centres;
    where a map shrinks, the filter widens to the variance of a triangle filter of 1/scale (``antialias=False``: never).
    Outside the image: ``fill`` per channel, blended in over one pixel as OpenCV does, or the mirrored image. Gradients
    flow to ``images``. No image is copied: pixels are averaged only inside the region a shrinking crop needs.
    """
    indices = image_index.tolist()
    first = images[0] if len(images) else torch.zeros(3, 1, 1)
    channels, device = first.shape[0], first.device
    out = torch.empty(len(indices), channels, size, size, device=device)
    if not indices:
        return out
    inverses = invert(matrices.detach().double().cpu())
    pieces: dict[int, Tensor] = {}
    for image_number in sorted(set(indices)):
        image = images[image_number]
        faces = [i for i, j in enumerate(indices) if j == image_number]
        plans = {i: _plan(inverses[i], size, image.shape[-2:], border, antialias) for i in faces}
        for group in _groups(plans, size):
            crops = _sample(image, [plans[i] for i in group], size, border, fill)
            pieces.update(zip(group, crops, strict=True))
    return torch.stack([pieces[i] for i in range(len(indices))])


def _plan(inverse: Tensor, size: int, image_size: Sequence[int], border: Border, antialias: bool) -> _Plan:
    """Work out ``_Plan`` on the host: a few numbers per face."""
    scale = 1 / math.sqrt(max(abs(float(torch.linalg.det(inverse[:, :2]))), 1e-12))
    factor = max(1, int(_LEAST_SCALE / scale)) if antialias else 1
    factor = min(factor, max(image_size))
    rest = min(1.0, scale * factor)
    # Variances in averaged pixels: triangle of 1/rest minus triangle of 1 minus the box that averaging was.
    variance = (1 / rest**2 - 1) / 6 - (1 - 1 / factor**2) / 12 if antialias else 0.0
    spread = math.sqrt(max(0.0, variance) * 12 / (_TAPS**2 - 1))
    if spread < 1e-3:
        spread = 0.0
    corner = torch.tensor([[-1.0, -1, 1], [size, -1, 1], [-1, size, 1], [size, size, 1]], dtype=torch.float64)
    points = corner @ inverse.t()
    margin = factor * (2 + spread)
    height, width = image_size
    x0, x1 = _span(float(points[:, 0].min()) - margin, float(points[:, 0].max()) + margin, width, factor, border)
    y0, y1 = _span(float(points[:, 1].min()) - margin, float(points[:, 1].max()) + margin, height, factor, border)
    return _Plan(inverse, factor, spread, (x0, y0, x1, y1))


def _span(low: float, high: float, length: int, factor: int, border: Border) -> tuple[int, int]:
    """First and last+1 pixel of an axis that are read, given the interval that is sampled."""
    if border == "reflect" and (low < 0 or high > length - 1):
        # What lies outside is seen again inside: read the whole side it mirrors.
        low, high = min(low, 2 * length - high), max(high, -low)
    start = min(max(0, math.floor(low)), length - 1)
    stop = max(start + 1, min(length, math.ceil(high) + 1))
    if stop == length:
        start = max(0, start - (start - stop) % factor)  # whole blocks up to the edge, so that it stays where it is
    return start, stop


def _groups(plans: dict[int, _Plan], size: int) -> list[list[int]]:
    """Crops that one sampling call serves: unaveraged ones together, averaged ones one by one."""
    groups: list[list[int]] = []
    for taps in (1, _TAPS):
        alike = [i for i, p in plans.items() if p.factor == 1 and (p.spread > 0) == (taps > 1)]
        step = max(1, _CHUNK // (size * taps) ** 2)
        groups += [alike[i : i + step] for i in range(0, len(alike), step)]
    return groups + [[i] for i, p in plans.items() if p.factor > 1]


def _sample(image: Tensor, plans: list[_Plan], size: int, border: Border, fill: float | Sequence[float]) -> Tensor:
    """[n,C,size,size] of one image [C,H,W]: one bilinear sampling for all ``plans`` (which share factor and taps)."""
    factor = plans[0].factor
    x0, y0 = (min(p.region[k] for p in plans) for k in (0, 1))
    x1, y1 = (max(p.region[k] for p in plans) for k in (2, 3))
    region = image[:, y0:y1, x0:x1].float()
    constant = torch.as_tensor(fill, dtype=torch.float32, device=image.device).expand(image.shape[0])[:, None, None]
    if factor > 1:
        region = _average(region, factor, constant if border == "constant" else None)
    height, width = region.shape[-2:]
    to_region = torch.tensor([x0 + 0.5 * (factor - 1), y0 + 0.5 * (factor - 1)], dtype=torch.float64)
    inverse = torch.stack([p.inverse for p in plans])
    inverse = torch.cat([inverse[..., :2], inverse[..., 2:] - to_region[:, None]], -1) / factor
    taps = 1 if plans[0].spread == 0 else _TAPS
    points = _points(inverse, [p.spread for p in plans], size, taps, image.device)  # [n,size*taps,size*taps,2]
    length = torch.tensor([width, height], device=image.device, dtype=torch.float32)
    grid = (2 * points + 1) / length - 1
    padding = "zeros" if border == "constant" else "reflection"
    crops = F.grid_sample(region[None], grid.flatten(0, 1)[None], "bilinear", padding, align_corners=False)[0]
    crops = crops.unflatten(1, (len(plans), size * taps)).transpose(0, 1)
    if border == "constant":
        covered = torch.minimum(points + 1, length - points).clamp(0, 1).prod(-1)
        crops = crops + (1 - covered)[:, None] * constant
    return F.avg_pool2d(crops, taps) if taps > 1 else crops


def _average(region: Tensor, factor: int, outside: Tensor | None) -> Tensor:
    """Mean over factor x factor pixels; what is missing at the far edges is ``outside`` or the edge again."""
    height, width = region.shape[-2:]
    missing = (0, -width % factor, 0, -height % factor)
    if outside is None:
        padded = F.pad(region[None], missing, mode="replicate")
    else:
        padded = F.pad(region[None] - outside, missing)
    mean = F.avg_pool2d(padded, factor)[0]
    return mean if outside is None else mean + outside


def _points(inverse: Tensor, spreads: list[float], size: int, taps: int, device: torch.device) -> Tensor:
    """Where to sample: [n,size*taps,size*taps,2] in region pixels, taps around every output pixel centre."""
    offsets = torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2
    # The taps are spread in source pixels, so each crop has its own distance between them in output pixels.
    linear = inverse[:, :, :2]
    step = torch.tensor(spreads, dtype=torch.float64) / torch.linalg.det(linear).abs().sqrt()
    axis = torch.arange(size, dtype=torch.float64)[None, :, None] + step[:, None, None] * offsets
    axis = axis.flatten(1).float().to(device)  # [n,size*taps]
    linear, shift = linear.float().to(device), inverse[:, :, 2].float().to(device)
    along_x = axis[:, None, :, None] * linear[:, None, None, :, 0]
    along_y = axis[:, :, None, None] * linear[:, None, None, :, 1]
    return along_x + along_y + shift[:, None, None]
