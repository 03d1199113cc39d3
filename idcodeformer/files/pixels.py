"""Stored integers <-> upright floats, a strip at a time: a large picture is held as float once, and never twice."""
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

_STRIP = 1 << 18  # px converted at once
# Axes along which pixels are mirrored, once rows and columns are swapped for 5 to 8 (Exif 2.3, table 6).
_FLIPS = {2: (-1,), 3: (-1, -2), 4: (-2,), 6: (-1,), 7: (-1, -2), 8: (-2,)}


def planes(
    rows: Callable[[int, int], np.ndarray], height: int, width: int, channels: int, top: int, orientation: int = 1
) -> Tensor:
    """[1,channels,H,W] float32 in [0,1], contiguous and upright, of a stored picture of ``height`` rows.

    ``rows(a, b)`` gives its rows a to b: integers in 0..``top`` [b-a,width,channels], or [b-a,width] with one channel.
    ``orientation`` undoes the rotation of the camera.
    """
    import numpy as np

    turned = orientation in (5, 6, 7, 8)
    upright = torch.empty(1, channels, *((width, height) if turned else (height, width)))
    stored = np.flip(upright[0].numpy(), _FLIPS.get(orientation, ()))  # a view: writing to it turns
    stored = stored.swapaxes(1, 2) if turned else stored
    step = max(1, _STRIP // width)
    for start in range(0, height, step):
        strip = rows(start, min(start + step, height)).reshape(-1, width, channels)
        np.divide(strip.transpose(2, 0, 1), np.float32(top), out=stored[:, start : start + step], dtype=np.float32)
    return upright


def planes_of(image: Image, orientation: int = 1) -> Tensor:
    """``planes`` of a picture of 8 bits a channel that Pillow holds."""
    import numpy as np

    def rows(start: int, stop: int) -> np.ndarray:
        return np.asarray(image.crop((0, start, image.width, stop)))

    return planes(rows, image.height, image.width, len(image.getbands()), 255, orientation)


def to_levels(pixels: Tensor, levels: int = 255, alpha: Tensor | None = None) -> np.ndarray:
    """[C,H,W] in [0,1] -> [H,W,C] integers, clamped and rounded (truncating would darken by half a level).

    ``alpha`` [1,H,W] becomes one more channel.
    """
    import numpy as np

    parts = [pixels.detach()] if alpha is None else [pixels.detach(), alpha.detach()]
    height, width = pixels.shape[1:]
    dtype = np.uint8 if levels == 255 else np.uint16
    array = np.empty((height, width, sum(len(part) for part in parts)), dtype)
    step = max(1, _STRIP // max(1, width))
    for start in range(0, height, step):
        strips = [part[:, start : start + step].cpu().float() for part in parts]
        strip = (torch.cat(strips) if alpha is not None else strips[0]).clamp(0, 1).mul_(levels).round_()
        array[start : start + step] = strip.permute(1, 2, 0).numpy()
    return array
