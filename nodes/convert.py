"""ComfyUI's IMAGE [B,H,W,C] and MASK [B,H,W] <-> the core's [B,3,H,W] and masks, forgiving what other packs pass."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..idcodeformer.errors import BadImage
from . import host

if TYPE_CHECKING:
    from PIL.Image import Image

_PLACEHOLDER = (64, 64)  # Load Image hands out a black mask of this size where the file has no alpha


@dataclass(frozen=True, eq=False)
class Frames:
    """An IMAGE as the core wants it, and what is needed to give the result the same form."""

    pixels: Tensor  # [B,3,H,W] float32 in [0,1], on the device of the IMAGE
    extra: Tensor | None  # [B,C-3,H,W]: alpha and whatever else came along

    def __len__(self) -> int:
        return self.pixels.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in px."""
        return self.pixels.shape[2], self.pixels.shape[3]


def frames_of(image: Tensor, name: str = "image") -> Frames:
    """Any IMAGE: [H,W,C] or [B,H,W,C], 1, 3 or more channels, any float type, integers in 0..255, values beyond 0..1.

    Raises BadImage for what is not a picture; ``name`` is the input's name, for that message.
    """
    if not isinstance(image, Tensor) or image.dim() not in (3, 4) or image.shape[-1] < 1:
        shape = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise BadImage(f"'{name}' is {shape}, not an IMAGE [frames, height, width, channels]. Link an image output.")
    batch = image if image.dim() == 4 else image[None]
    pixels = batch.movedim(-1, 1)
    pixels = pixels.float() if pixels.is_floating_point() else pixels.float() / 255
    channels = pixels.shape[1]
    if channels < 3:  # grey, or grey with alpha
        pixels = torch.cat([pixels[:, :1].expand(-1, 3, -1, -1), pixels[:, 1:]], dim=1)
    extra = pixels[:, 3:] if pixels.shape[1] > 3 else None
    return Frames(pixels[:, :3].clamp(0, 1).contiguous(), extra)


def image_of(images: Sequence[Tensor], like: Frames) -> Tensor:
    """IMAGE of the core's pictures [3,H',W'] (all of one size); extra channels of ``like`` are scaled along."""
    if not images:
        return torch.cat([like.pixels, *([] if like.extra is None else [like.extra])], 1).movedim(1, -1)
    batch = torch.stack([image.to(host.output_device(), torch.float32) for image in images]).clamp_(0, 1)
    if like.extra is not None:
        extra = like.extra.to(batch)
        if extra.shape[2:] != batch.shape[2:]:
            extra = F.interpolate(extra, size=batch.shape[2:], mode="bilinear", align_corners=False)
        batch = torch.cat([batch, extra], dim=1)
    return batch.movedim(1, -1).contiguous()


def mask_of(masks: Sequence[Tensor], like: Frames) -> Tensor:
    """MASK [B,H,W] of the core's masks [1,H,W]."""
    if not masks:
        return torch.zeros(len(like), *like.size, device=host.output_device())
    return torch.cat([mask.to(host.output_device(), torch.float32) for mask in masks]).clamp_(0, 1)


def crops_image(pixels: Tensor) -> Tensor:
    """IMAGE [N,S,S,3] of crops [N,3,S,S]; one black crop where there is none: many nodes fail on empty batches."""
    if pixels.shape[0] == 0:
        pixels = pixels.new_zeros(1, 3, max(1, pixels.shape[2]), max(1, pixels.shape[3]))
    return pixels.to(host.output_device(), torch.float32).clamp(0, 1).movedim(1, -1).contiguous()


def is_placeholder(mask: Tensor, size: tuple[int, int]) -> bool:
    """Whether this is Load Image's way to say that there is no mask (it would exclude every pixel)."""
    return tuple(mask.shape[-2:]) == _PLACEHOLDER != tuple(size) and not bool(mask.any())


def masks_for(mask: Tensor | None, frames: Frames) -> Tensor | None:
    """MASK [H,W], [B,H,W], [B,1,H,W] or [B,H,W,1] -> [B,1,H,W] float32 in [0,1], one per frame and of its size.

    One mask serves all frames. None where nothing (or Load Image's placeholder) is linked. Raises BadImage.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 3, 4) or mask.numel() == 0:
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise BadImage(f"'mask' is {shape}, not a MASK [frames, height, width]. Link a mask output.")
    if mask.dim() == 4:
        mask = mask[:, 0] if mask.shape[1] == 1 else mask[..., -1]
    elif mask.dim() == 2:
        mask = mask[None]
    if is_placeholder(mask, frames.size):
        return None
    if mask.shape[0] not in (1, len(frames)):
        raise BadImage(f"'mask' has {mask.shape[0]} frames, the image {len(frames)}; give one mask or one per frame.")
    mask = mask[:, None].to(frames.pixels.device, torch.float32).clamp(0, 1)
    if mask.shape[2:] != frames.pixels.shape[2:]:
        mask = F.interpolate(mask, size=frames.size, mode="bilinear", align_corners=False)
    return mask.expand(len(frames), -1, -1, -1)


def pil_of(pixels: Tensor) -> Image:
    """PIL picture of one [3,H,W] tensor in [0,1]."""
    from PIL import Image

    array = pixels.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8).movedim(0, -1).cpu().numpy()
    return Image.fromarray(array)


def tensor_of(picture: Image) -> Tensor:
    """[3,H,W] in [0,1] of a PIL picture."""
    import numpy as np

    return torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32) / 255).movedim(-1, 0).contiguous()
