"""Faces of monochrome pictures stay monochrome: the restorer invents colour where there was none."""
from __future__ import annotations

import torch
from torch import Tensor

from ..types import GrayMode

# Mean variance in grey levels squared, as in the reference (misc.py:146-160).
_COLOUR_VARIANCE = 10.0 / 255**2
_AT_ONCE = 8  # faces; bounds the memory of intermediate results
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def is_monochrome(pixels: Tensor) -> Tensor:
    """[N] bool: the colours of a face [N,3,S,S] lie on one line, as in black and white, tinted or sepia pictures.

    The reference asks for a small variance of the channel differences over the whole picture: a sepia photograph
    fails, a warm face in a gray scene passes. Here each face is asked, and what luminance explains of the differences
    is taken out first (the residual variance of a linear regression on luminance).
    """
    step = max(1, pixels.shape[-1] // 128)  # some ten thousand pixels tell as much as all
    pixels = pixels[..., ::step, ::step]
    luma = luminance(pixels).flatten(1)
    luma = luma - luma.mean(1, keepdim=True)
    energy = luma.square().mean(1).clamp(min=1e-8)
    residual = torch.zeros_like(energy)
    for a, b in ((0, 1), (1, 2), (2, 0)):
        difference = (pixels[:, a] - pixels[:, b]).flatten(1)
        difference = difference - difference.mean(1, keepdim=True)
        residual += difference.square().mean(1) - (difference * luma).mean(1) ** 2 / energy
    return residual / 3 <= _COLOUR_VARIANCE


def luminance(pixels: Tensor) -> Tensor:
    """[N,S,S] luma of RGB [N,3,S,S]."""
    red, green, blue = _LUMA  # plain numbers: a tensor of them would have to travel to the device first
    return red * pixels[:, 0] + green * pixels[:, 1] + blue * pixels[:, 2]


def match_gray(restored: Tensor, pixels: Tensor, mode: GrayMode = "auto") -> Tensor:
    """Restored faces [N,3,S,S] in [0,1]; those of monochrome ``pixels`` keep only luminance, in the tone of the input.

    Mean and standard deviation of each channel become those of the input crop (so a tint or sepia stays), clipped to
    [0,1]; without the clip, as in the reference, such pictures came out black. ``mode``: "force" takes every face for
    monochrome, "off" none. Decided on the device.
    """
    if mode == "off" or len(restored) == 0:
        return restored
    out = restored
    for start in range(0, len(restored), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        matched = _match(restored[some], pixels[some], mode)
        if matched is not None:
            out = restored.clone() if out is restored else out  # nothing is copied where no face is gray
            out[some] = matched
    return out


def _match(restored: Tensor, pixels: Tensor, mode: GrayMode) -> Tensor | None:
    """None where no face is monochrome, as far as that can be known without waiting for the device."""
    gray = is_monochrome(pixels) if mode == "auto" else None
    if gray is not None and gray.device.type == "cpu" and not bool(gray.any()):
        return None
    luma = luminance(restored)[:, None]
    l_var, l_mean = torch.var_mean(luma, dim=(2, 3), keepdim=True)
    c_var, c_mean = torch.var_mean(pixels, dim=(2, 3), keepdim=True)
    toned = ((luma - l_mean) * (c_var / (l_var + 1e-10)).sqrt() + c_mean).clamp(0, 1)
    return toned if gray is None else torch.where(gray[:, None, None, None], toned, restored)
