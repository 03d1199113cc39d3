"""Stored integers <-> upright planes, a strip at a time: a large picture is held once, and never twice."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

_STRIP = 1 << 18  # px converted at once
_MODES = {2: "LA", 3: "RGB", 4: "RGBA"}  # of Pillow, by the number of channels
# Axes along which pixels are mirrored, once rows and columns are swapped for 5 to 8 (Exif 2.3, table 6).
_FLIPS = {2: (-1,), 3: (-1, -2), 4: (-2,), 6: (-1,), 7: (-1, -2), 8: (-2,)}


def planes(
    rows: Callable[[int, int], np.ndarray],
    height: int,
    width: int,
    channels: int,
    top: int,
    orientation: int = 1,
    levels: bool = False,
) -> Tensor:
    """[1,channels,H,W] float32 in [0,1], contiguous and upright, of a stored picture of ``height`` rows.

    ``rows(a, b)`` gives its rows a to b: integers in 0..``top`` [b-a,width,channels], or [b-a,width] with one channel.
    ``orientation`` undoes the rotation of the camera. ``levels``: uint8 as they are stored, ``top`` being 255.
    """
    import numpy as np

    turned = orientation in (5, 6, 7, 8)
    kind = torch.uint8 if levels else torch.float32
    upright = torch.empty(1, channels, *((width, height) if turned else (height, width)), dtype=kind)
    stored = np.flip(upright[0].numpy(), _FLIPS.get(orientation, ()))  # a view: writing to it turns
    stored = stored.swapaxes(1, 2) if turned else stored
    step = max(1, _STRIP // width)
    for start in range(0, height, step):
        strip = rows(start, min(start + step, height)).reshape(-1, width, channels)
        strip, into = strip.transpose(2, 0, 1), stored[:, start : start + step]
        if levels:
            into[:] = strip
        else:
            np.divide(strip, np.float32(top), out=into, dtype=np.float32)
    return upright


def floats(pixels: Tensor) -> Tensor:
    """Pixels as float32 in [0,1]: levels of 8 bits over 255, with planes of their own; floats as they are."""
    if pixels.dtype != torch.uint8:
        return pixels.float()
    return torch.empty(pixels.shape, device=pixels.device).copy_(pixels).div_(255)


def planes_of(image: Image, orientation: int = 1, levels: bool = False) -> Tensor:
    """``planes`` of a picture of 8 bits a channel that Pillow holds."""
    import numpy as np

    def rows(start: int, stop: int) -> np.ndarray:
        return np.asarray(image.crop((0, start, image.width, stop)))

    return planes(rows, image.height, image.width, len(image.getbands()), 255, orientation, levels)


def to_levels(pixels: Tensor, levels: int = 255, alpha: Tensor | None = None) -> np.ndarray:
    """[C,H,W] in [0,1] -> [H,W,C] integers, clamped and rounded (truncating would darken by half a level).

    uint8 pixels stay as they are at 255 ``levels``. ``alpha`` [1,H,W] becomes one more channel.
    """
    import numpy as np

    channels = len(pixels) + (alpha is not None)
    array = np.empty((*pixels.shape[1:], channels), np.uint8 if levels == 255 else np.uint16)
    for start, strip in _strips(pixels, levels, alpha):
        for channel, plane in enumerate(strip):  # a quarter of the time of all channels at once
            array[start : start + len(plane), :, channel] = plane
    return array


def to_image(pixels: Tensor, alpha: Tensor | None = None) -> Image:
    """``to_levels`` of 8 bits a channel, in Pillow's hands and nowhere else."""
    import numpy as np
    from PIL import Image

    image: Image.Image | None = None
    for start, strip in _strips(pixels, 255, alpha):
        bands = [Image.fromarray(plane) for plane in strip.astype(np.uint8, copy=False)]
        part = bands[0] if len(bands) == 1 else Image.merge(_MODES[len(bands)], bands)
        image = image or Image.new(part.mode, (pixels.shape[2], pixels.shape[1]))
        image.paste(part, (0, start))
    assert image is not None  # a picture has rows
    return image


def _strips(pixels: Tensor, levels: int, alpha: Tensor | None) -> Iterator[tuple[int, np.ndarray]]:
    """The first row of every strip, and its pixels [C,h,W], whole numbers."""
    parts = [pixels.detach()] if alpha is None else [pixels.detach(), alpha.detach()]
    step = max(1, _STRIP // max(1, pixels.shape[2]))
    for start in range(0, pixels.shape[1], step):
        rows = [part[:, start : start + step].cpu() for part in parts]
        if levels != 255 or any(part.dtype != torch.uint8 for part in parts):
            rows = [floats(part).clamp(0, 1).mul_(levels).round_() for part in rows]
        yield start, (torch.cat(rows) if len(rows) > 1 else rows[0]).numpy()
