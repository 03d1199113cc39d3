"""What lies under fully transparent pixels is filled from what shows around it, so that it has no influence."""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .pixels import floats

_SURE = 0.5  # of alpha: from here on a coarser level has no say in a pixel's colour


def fill_hidden(frames: Tensor, alpha: Tensor) -> Tensor:
    """``frames`` [F,3,H,W] with other colours where ``alpha`` [F,1,H,W] in [0,1] is 0; black where all is.

    Where something is hidden the result is float32 in [0,1], since its colours lie between levels of 8 bits.

    Each hidden pixel takes the mean of what shows nearest, weighted by alpha, from coarser scales the less there is
    (pull-push; Gortler et al. 1996, "The Lumigraph", section 3.4.2). What shows even a little is returned as it was.
    """
    hidden = alpha <= 0
    if not bool(hidden.any()):
        return frames
    frames = floats(frames)
    out = frames.clone()
    for number in hidden.flatten(1).any(1).nonzero()[:, 0].tolist():
        here = slice(number, number + 1)
        filled = _pull_push(frames[here] * alpha[here], alpha[here].float())
        out[here] = torch.where(hidden[here], filled, frames[here])
    return out


def _pull_push(colour: Tensor, weight: Tensor) -> Tensor:
    """Colours [1,3,H,W] everywhere, of ``colour`` [1,3,H,W] that is weighted by ``weight`` [1,1,H,W]."""
    mean = colour / weight.clamp(min=1e-6)
    height, width = weight.shape[-2:]
    if max(height, width) == 1:
        return mean
    edges = (0, width % 2 and width > 1, 0, height % 2 and height > 1)  # an odd side: the last column has weight 0
    window = (min(2, height), min(2, width))
    halves = (F.avg_pool2d(F.pad(part, tuple(map(int, edges))), window) for part in (colour, weight))
    coarse = F.interpolate(_pull_push(*halves), (height, width), mode="bilinear", align_corners=False)
    share = (weight / _SURE).clamp(max=1)
    return coarse + share * (mean - coarse)
