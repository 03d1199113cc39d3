"""Which part of a pasted face shows: a soft square, the parsed face, the user's mask. 1 = restored, 0 = untouched."""
from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import BadOption
from ..geometry.face_shape import crop_distance
from ..geometry.resizing import resize
from .plan import Region

# The reference erodes the square by 1/20 of its side and blurs it over as much (face_restoration_helper.py:433-451).
_FEATHER_SHARE = 20
_FACE_WHOLE, _FACE_END = 0.95, 1.25  # of the face's ellipse: where a mask without parsing starts to fall, and is zero
_TINY_SHARE = 12  # below 20 px that share is no pixel at all and the reference has a hard edge


def feather(region: Region, upscale: float) -> tuple[float, float]:
    """(margin, width) in output px of a face's soft edge: its middle lies ``margin`` inside the crop's border, and it
    reaches ``width`` to either side of that."""
    side = region.visible
    width = float(side // _FEATHER_SHARE) or min(1.0, side / _TINY_SHARE)
    # One input pixel at the border mixes with what lay outside the crop; enlarged, it is `upscale` output pixels.
    margin = width + min(max(upscale, 1.0) - 1, side / 16)
    # The reference erodes with an upright square, which moves the edges of a turned face further in.
    xx, xy = region.to_crop[:2]
    return margin * (abs(xx) + abs(xy)) / region.density, width


def soft_square(
    region: Region, crop_size: int, upscale: float, side: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Mask [side,side] over a crop of ``crop_size`` px: its square, shrunk by the margin and blurred by a Gaussian that
    is cut off where it meets the border, so that no seam shows."""
    margin, width = feather(region, upscale)
    sigma = 0.3 * width + 0.5  # OpenCV's sigma for a kernel of 2 * width + 1
    tail = 0.5 * math.erfc(width / sigma / math.sqrt(2))
    u = (torch.arange(side, device=device) + 0.5) * (crop_size / side)  # crop px from the left border
    inside = torch.minimum(u, crop_size - u) / region.density - margin  # output px from the middle of the edge
    step = 0.5 + 0.5 * torch.erf(inside / (sigma * math.sqrt(2)))
    profile = ((step - tail) / (1 - 2 * tail)).clamp(0, 1)
    return profile * profile[:, None]


def face_mask(side: int, device: torch.device | str = "cpu") -> Tensor:
    """[side,side] over a crop: 1 on the face from ear to ear and from hairline to chin, soft around it, 0 beyond."""
    beyond = (_FACE_END - crop_distance(side, device)) / (_FACE_END - _FACE_WHOLE)
    step = beyond.clamp(0, 1)
    return step.square() * (3 - 2 * step)


def user_mask(mask: Tensor, size: tuple[int, int], number: int) -> Tensor:
    """A user's mask [H,W] or [1,H,W] in [0,1], resized to ``size`` = (height, width) -> [1,height,width]."""
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.ndim != 3 or mask.shape[0] != 1 or mask.numel() == 0:
        raise BadOption(f"The mask of image {number} is {list(mask.shape)}; give [H,W] or [1,H,W].")
    mask = mask.float()
    if tuple(mask.shape[1:]) != tuple(size):
        mask = resize(mask[None], size)[0]
    return mask.clamp(0, 1)
