"""Anti-aliased resizing on every device, in little memory."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..files.pixels import floats

_WHOLE = 1 << 23  # values; larger pictures go channel by channel, since torch keeps them once more between the axes
_STRIP = 1 << 18  # levels of 8 bits that are made floats at once


def block_means(planes: Tensor, block: int) -> Tensor:
    """Means [...,H // block,W // block] over block x block px of planes [...,H,W], whose sides ``block`` divides.

    Rows come first, which a CPU adds in whole registers: two to three times as quick as F.avg_pool2d.
    """
    if block == 1:
        return planes
    rows = planes.unflatten(-2, (-1, block)).mean(-2)
    return F.avg_pool2d(rows, (1, block))


def resize(pixels: Tensor, size: Sequence[int], mode: Literal["bilinear", "bicubic"] = "bilinear") -> Tensor:
    """``pixels`` [N,C,H,W] at ``size`` = (height, width); where they shrink the filter widens. Not clamped.

    Of uint8 the result is that of floats in [0,1], which on a CPU never exist as a whole. Where a device lacks the
    operator (Apple's MPS in some versions of torch) the CPU does it.
    """
    size = int(size[0]), int(size[1])
    if pixels.dtype == torch.uint8:
        if pixels.device.type == "cpu":
            return _of_levels(pixels, size, mode)
        pixels = floats(pixels)
    pixels = pixels.float() if pixels.dtype in (torch.float16, torch.bfloat16) else pixels
    try:
        if pixels.device.type != "cpu" or pixels.numel() <= _WHOLE or pixels.requires_grad:
            return F.interpolate(pixels, size, mode=mode, antialias=True)
    except NotImplementedError:
        return F.interpolate(pixels.cpu(), size, mode=mode, antialias=True).to(pixels.device)
    out = pixels.new_empty(*pixels.shape[:2], *size)
    for channel in range(pixels.shape[1]):
        here = slice(channel, channel + 1)
        out[:, here] = F.interpolate(pixels[:, here], size, mode=mode, antialias=True)
    return out


def _of_levels(pixels: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Channel by channel, first along the rows as torch does, a strip of rows at a time."""
    count, channels, height, width = pixels.shape
    out = torch.empty(count, channels, *size)
    narrow = torch.empty(count, 1, height, size[1])
    step = max(1, _STRIP // (count * width))
    for channel in range(channels):
        here = slice(channel, channel + 1)
        for start in range(0, height, step):
            strip = floats(pixels[:, here, start : start + step])
            narrow[:, :, start : start + step] = F.interpolate(
                strip, (strip.shape[2], size[1]), mode=mode, antialias=True
            )
        out[:, here] = F.interpolate(narrow, size, mode=mode, antialias=True)
    return out
