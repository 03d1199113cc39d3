"""What the input shows stays: a face that is soft by little, or not at all, keeps its own coarse forms and colours.

A network redraws the whole face. Of an input that lost everything fine this is all there is to go by; of one that shows
most of it, it is a worse copy: brows grow hard, pink spots appear, likeness falls. So the band that such an input shows
is the input's, and the network adds what lies beyond it. Figures: docs/faces.md.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..geometry.resizing import block_means
from .bands import block_for, enlarged, in_parts, low_pass
from .large import detail_and_noise

_SEEN_AT = 128  # px of the side at which the input is looked at
# Side of a crop over the sigma of a band, and the shares of the restored face's fine detail between which that band of
# the input comes to count. Inputs reduced four times, with noise and JPEG, show 0.33 to 0.48 (deciles); merely softened
# 2 times 0.68 to 0.89, 3 times 0.52 to 0.64; clean ones 0.86 to 1.2.
_BANDS = ((64, 0.45, 0.65), (96, 0.65, 0.85))
_NOISE = (0.02, 0.045)  # rms in [0,1] of even noise between which the input stops to count: 5 and 11 levels
# rms in [0,1] of the difference within the band between which the network is taken to have drawn other forms, whose
# fine parts would not fit the input's coarse ones. Usual: 0.011 to 0.024; of x8 inputs 0.029 to 0.046.
_APART = (0.04, 0.07)
_FREE = 0.5  # fidelity below which the network is given a free hand, wholly at 0


def keep_shown(
    restored: Tensor, pixels: Tensor, ws: Sequence[float | None], gray: Tensor | None = None
) -> Tensor:
    """Restored faces [N,3,S,S] in [0,1] with the band that the input crops ``pixels`` show; clipped.

    ``ws``: the fidelity in [0,1] of each; None where the network has none. ``gray`` [N]: faces that have their tone
    already, of which brightness alone is taken. How wide the band is follows from how much fine detail the input has
    beside the restored face. Heavily degraded or noisy inputs, and w = 0, change nothing.
    """
    free = [1.0 if w is None else min(1.0, w / _FREE) for w in ws]
    if not any(free):
        return restored
    out = restored
    for some in in_parts(len(restored), restored.device):
        if not any(free[some]):
            continue
        change = _change(restored[some], pixels[some], restored.new_tensor(free[some]))
        if change is not None:
            if gray is not None:
                change = torch.where(gray[some, None, None, None], change.mean(1, keepdim=True), change)
            out = restored.clone() if out is restored else out
            out[some] = (restored[some] + change).clamp_(0, 1)
    return out


def _change(restored: Tensor, pixels: Tensor, free: Tensor) -> Tensor | None:
    """[N,3,S,S], or None where it is nothing, as far as that can be known without waiting for the device."""
    side = pixels.shape[-1]
    block = block_for(side, _SEEN_AT)
    before, after = block_means(pixels, block), block_means(restored, block)
    (detail, noise), (drawn, _) = detail_and_noise(before), detail_and_noise(after)
    share = detail / drawn.clamp(min=1e-6)
    trust = free * (1 - _ramp(noise, *_NOISE))
    if trust.device.type == "cpu" and not bool((trust * _ramp(share, *_BANDS[0][1:])).any()):
        return None
    missing, below, change = before - after, None, torch.zeros_like(before)
    for parts, low, high in _BANDS:
        band = low_pass(missing, side / block / parts)
        if below is None:
            trust = trust * (1 - _ramp(band.square().mean((1, 2, 3)).sqrt(), *_APART))
        change += (trust * _ramp(share, low, high))[:, None, None, None] * (band if below is None else band - below)
        below = band
    return enlarged(change, block)


def _ramp(values: Tensor, low: float, high: float) -> Tensor:
    return ((values - low) / (high - low)).clamp(0, 1)
