"""Bands of crops: means over blocks, Gaussians over them, and the way back to the crop's side."""
from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

AT_ONCE = 8  # faces; bounds the memory of intermediate results


def in_parts(count: int, device: torch.device) -> Iterator[slice]:
    """The faces that are worked on together: on a CPU one, which stays in the cache."""
    step = 1 if device.type == "cpu" else AT_ONCE
    return (slice(start, start + step) for start in range(0, count, step))


def block_for(side: int, fewest: int) -> int:
    """Px of the largest blocks that divide ``side`` and leave ``fewest`` of them along it or more; 1 for small ones."""
    return next(n for n in range(max(1, side // fewest), 0, -1) if side % n == 0)


def enlarged(planes: Tensor, block: int) -> Tensor:
    """Planes [...,s,s] ``block`` times as large, linear between the middles of the blocks: as F.interpolate does it, in
    a fifth of the time. Columns by one product while there are few rows, rows by steps from one to the next."""
    if block == 1:
        return planes
    side, shift = planes.shape[-1], block // 2
    axis = torch.arange(side, device=planes.device, dtype=torch.float32)
    fine = (torch.arange(side * block, device=planes.device) + 0.5) / block - 0.5
    wide = planes @ (1 - (fine.clamp(0, side - 1) - axis[:, None]).abs()).clamp(min=0)
    wide = torch.cat([wide[..., :1, :], wide, wide[..., -1:, :]], -2)
    share = (torch.arange(block, device=planes.device) - shift + 0.5) / block + 0.5
    steps = wide.diff(dim=-2)[..., None, :]
    rows = torch.addcmul(wide[..., :-1, None, :], steps, share[:, None]).flatten(-3, -2)
    return rows[..., shift : shift + side * block, :]


def low_pass(planes: Tensor, sigma: float) -> Tensor:
    """Gaussian of ``sigma`` px over [N,C,S,S], mirrored at the border, as two matrix products."""
    side, device = planes.shape[-1], planes.device
    kernel = _kept_gaussian(side, sigma) if device.type == "cpu" else _mirrored_gaussian(side, sigma, device)
    return kernel @ planes @ kernel.t()


@lru_cache(maxsize=8)
def _kept_gaussian(side: int, sigma: float) -> Tensor:
    return _mirrored_gaussian(side, sigma, torch.device("cpu"))


def _mirrored_gaussian(side: int, sigma: float, device: torch.device) -> Tensor:
    """[side,side] rows of a Gaussian whose tails are folded back at the border, made where it is used."""
    axis = torch.arange(side, dtype=torch.float32, device=device)
    rows = torch.zeros(side, side, device=device)
    for turn in range(-2, 3):
        for image in (axis, -1 - axis):
            rows += torch.exp(-0.5 * ((image[None] + 2 * side * turn - axis[:, None]) / sigma) ** 2)
    return rows / rows.sum(1, keepdim=True)
