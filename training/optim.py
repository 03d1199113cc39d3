"""Optimisers, learning rates and the moving average of weights."""
from __future__ import annotations

import copy
import math

import torch
from torch import nn

from .config import ConfigError, OptimConfig


class EMA:
    """Exponential moving average of a network's floating-point state.

    Its memory is 1 / (1 - ``decay``) steps, and at most ``share`` of the steps done, so that the start is forgotten;
    1 would be the plain mean of all steps (Karras et al. 2024, section 3: averages over a share of the run).
    """

    def __init__(self, net: nn.Module, decay: float, share: float):
        self.net, self.decay, self.share = copy.deepcopy(net).eval().requires_grad_(False), decay, share

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Take in the weights after ``step`` (0-based): average = decay * average + (1 - decay) * weights."""
        decay = min(self.decay, (1 + step) / (1 + step + 1 / self.share))
        mine, new = list(self.net.state_dict().values()), list(net.state_dict().values())
        moving = [i for i, value in enumerate(mine) if value.is_floating_point()]
        if moving:  # as a list: on a GPU some hundred small kernels would cost more than the arithmetic
            torch._foreach_lerp_([mine[i] for i in moving], [new[i].to(mine[i].dtype) for i in moving], 1 - decay)
        for i in set(range(len(mine))) - set(moving):
            mine[i].copy_(new[i])


def learning_rate(optim: OptimConfig, step: int, steps: int) -> float:
    """Rate of a step (0-based): linear warm-up, then cosine to lr_min, halving at milestones, or constant."""
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    if optim.schedule == "cosine":
        share = (step - optim.warmup) / max(1, steps - optim.warmup)
        return optim.lr_min + 0.5 * (optim.lr - optim.lr_min) * (1 + math.cos(math.pi * min(1.0, share)))
    if optim.schedule == "steps":
        return optim.lr * 0.5 ** sum(step >= m for m in optim.milestones)
    if optim.schedule == "constant":
        return optim.lr
    raise ConfigError(f"Configuration key 'optim.schedule': {optim.schedule!r} is none of cosine, steps, constant.")


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def adam(params: list[nn.Parameter], optim: OptimConfig) -> torch.optim.Optimizer:
    """Adam, or AdamW where there is a weight decay."""
    make = torch.optim.AdamW if optim.weight_decay else torch.optim.Adam
    extra = {"weight_decay": optim.weight_decay} if optim.weight_decay else {}
    return make(params, lr=optim.lr, betas=(optim.betas[0], optim.betas[1]), **extra)
