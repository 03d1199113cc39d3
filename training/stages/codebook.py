"""Keeping the codebook alive: k-means start and reset of unused codes (Dhariwal et al. 2020, Jukebox, section 3)."""
from __future__ import annotations

import torch
from torch import Tensor


def kmeans(points: Tensor, count: int, iterations: int, generator: torch.Generator) -> Tensor:
    """[count,D] centres of points [P,D]; a centre that loses all its points moves to a random one."""
    first = torch.randint(len(points), (count,), generator=generator)
    if len(points) >= count:
        first = torch.randperm(len(points), generator=generator)[:count]
    centres = points[first].clone()
    for _ in range(iterations):
        nearest = torch.cdist(points, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        sizes = torch.bincount(nearest, minlength=count)
        centres = sums / sizes.clamp(min=1).unsqueeze(1)
        empty = (sizes == 0).nonzero().flatten()
        centres[empty] = points[torch.randint(len(points), (len(empty),), generator=generator)]
    return centres


def reset_dead(codes: Tensor, usage: Tensor, points: Tensor, generator: torch.Generator) -> int:
    """Move codes [K,D] with usage [K] of 0 onto random encoder outputs ``points`` [P,D], in place; returns how many."""
    dead = (usage == 0).nonzero().flatten()
    codes[dead] = points[torch.randint(len(points), (len(dead),), generator=generator)].to(codes.dtype)
    return len(dead)
