"""ComfyUI's IMAGE [B,H,W,C] and MASK [B,H,W] <-> the core's [B,3,H,W] and masks, forgiving what other packs pass."""
from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..idcodeformer.errors import BadImage
from ..idcodeformer.files.transparency import fill_hidden
from . import host

_PLACEHOLDER = (64, 64)  # Load Image hands out a black mask of this size where the file has no alpha


_PIXELS_AT_ONCE = 1 << 23  # px of input or output that are worked on at a time: 9 frames of 720p, 4 of 1080p


@dataclass(frozen=True, eq=False)
class Frames:
    """An IMAGE, handed to the core in parts: a clip may be larger than what is free beside it."""

    source: Tensor  # [B,H,W,C], as it came
    name: str = "image"

    def __len__(self) -> int:
        return self.source.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in px."""
        return self.source.shape[1], self.source.shape[2]

    def chunks(self, scale: float = 1.0, most: int | None = None) -> Iterator[tuple[int, int]]:
        """(start, stop) of runs of frames, at most ``most``, that stay below a bound, enlarged by ``scale``."""
        pixels = max(1, self.size[0] * self.size[1]) * max(1.0, scale) ** 2
        step = max(1, int(_PIXELS_AT_ONCE / pixels))
        step = step if most is None else min(step, most)
        return ((start, min(start + step, len(self))) for start in range(0, len(self), step))

    def part(self, start: int, stop: int) -> Tensor:
        """[n,3,H,W] float32 in [0,1] of these frames; with a fourth channel, what its alpha hides is filled.

        Raises BadImage where a frame holds NaN.
        """
        pixels = _floats(self.source[start:stop])
        colours = pixels[..., :3] if pixels.shape[-1] > 2 else pixels[..., :1].expand(-1, -1, -1, 3)
        clean = torch.empty(len(colours), 3, *self.size, device=colours.device)
        torch.clamp(colours.movedim(-1, 1), 0, 1, out=clean)
        if not bool(torch.isfinite(clean.sum())):
            wrong = start + int((~clean.isfinite()).flatten(1).any(1).nonzero()[0])
            raise BadImage(f"Frame {wrong} of '{self.name}' holds NaN; repair the step that made it.")
        if pixels.shape[-1] != 4:
            return clean
        return fill_hidden(clean, pixels[..., 3:].movedim(-1, 1))

    def digest(self) -> str:
        """Differs where a shape or a value differs."""
        digest = hashlib.sha256(f"{tuple(self.source.shape)} {self.source.dtype}".encode())
        for start, stop in self.chunks():
            raw = self.source[start:stop].detach().cpu().contiguous().view(torch.uint8)
            digest.update(raw.numpy())
        return digest.hexdigest()

    def digests(self, start: int, stop: int) -> list[str]:
        """Of each of these frames."""
        return [Frames(frame[None]).digest() for frame in self.source[start:stop]]

    def extra(self, start: int, stop: int) -> Tensor:
        """[n,H,W,C'] float32: alpha and whatever else came along beside the colours."""
        channels = self.source.shape[-1]
        return _floats(self.source[start:stop, ..., 3 if channels > 2 else 1 :])

    @property
    def extras(self) -> int:
        """How many channels there are beside the colours."""
        channels = self.source.shape[-1]
        return channels - (3 if channels > 2 else 1)


def _floats(pixels: Tensor) -> Tensor:
    return pixels.float() if pixels.is_floating_point() or pixels.dtype == torch.bool else pixels.float() / 255


def frames_of(image: Tensor, name: str = "image") -> Frames:
    """Any IMAGE: [H,W,C] or [B,H,W,C], 1, 3 or more channels, any float type, integers in 0..255, values beyond 0..1.

    Raises BadImage for what is not a picture; ``name`` is the input's name, for that message.
    """
    if not isinstance(image, Tensor) or image.dim() not in (3, 4) or image.shape[-1] < 1:
        shape = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise BadImage(f"'{name}' is {shape}, not an IMAGE [frames, height, width, channels]. Link an image output.")
    return Frames(image if image.dim() == 4 else image[None], name)


class Output:
    """An IMAGE of as many frames as ``like``, filled frame by frame; extra channels of ``like`` are scaled along."""

    def __init__(self, like: Frames, size: tuple[int, int], extra: bool = True):
        self._like, self._extra = like, like.extras if extra else 0
        self.image = torch.empty(len(like), *size, 3 + self._extra, device=host.output_device())

    def write(self, number: int, picture: Tensor) -> None:
        """``picture`` [3,H',W'] becomes frame ``number``."""
        frame = self.image[number]
        frame[..., :3].copy_(picture.movedim(0, -1)).clamp_(0, 1)
        if self._extra:
            extra = self._like.extra(number, number + 1)
            if extra.shape[1:3] != frame.shape[:2]:
                planes = extra.movedim(-1, 1)
                extra = F.interpolate(planes, size=frame.shape[:2], mode="bilinear", align_corners=False).movedim(1, -1)
            frame[..., 3:].copy_(extra[0])


def empty_mask(frames: int, size: tuple[int, int]) -> Tensor:
    """MASK [B,H,W] to be filled frame by frame."""
    return torch.zeros(frames, *size, device=host.output_device())


def joined(parts: list[Tensor], side: int) -> Tensor:
    """IMAGE [N,S,S,3] of crops [n,3,S,S]; one black crop of ``side`` px where there is none, for many nodes fail on
    empty batches.

    ``parts`` is emptied on the way, so that only one of them is there twice.
    """
    count = sum(map(len, parts))
    if count == 0:
        return torch.zeros(1, max(1, side), max(1, side), 3, device=host.output_device())
    out = torch.empty(count, *parts[0].shape[2:], 3, device=host.output_device())
    for part in (parts.pop() for _ in range(len(parts))):
        out[count - len(part) : count].copy_(part.movedim(1, -1))
        count -= len(part)
    return out.clamp_(0, 1)


def is_placeholder(mask: Tensor, size: tuple[int, int]) -> bool:
    """Whether this is Load Image's way to say that there is no mask (it would exclude every pixel)."""
    return tuple(mask.shape[-2:]) == _PLACEHOLDER != tuple(size) and not bool(mask.any())


@dataclass(frozen=True, eq=False)
class Masks:
    """A MASK that was found to fit the frames; resized when asked for, a few frames at a time."""

    source: Tensor  # [1,H',W'] or [B,H',W']
    size: tuple[int, int]
    device: torch.device

    def part(self, start: int, stop: int) -> Tensor:
        """[n,1,H,W] float32 in [0,1], one per frame and of its size. Raises BadImage where it holds NaN."""
        mask = self.source if len(self.source) == 1 else self.source[start:stop]
        mask = mask[:, None].to(self.device, torch.float32).clamp(0, 1)
        if not bool(torch.isfinite(mask.sum())):
            raise BadImage("'mask' holds NaN; repair the step that made it.")
        if tuple(mask.shape[2:]) != self.size:
            mask = F.interpolate(mask, size=self.size, mode="bilinear", align_corners=False)
        return mask.expand(stop - start, -1, -1, -1)


def masks_for(mask: Tensor | None, frames: Frames) -> Masks | None:
    """MASK [H,W], [B,H,W], [B,1,H,W] or [B,H,W,1]; one mask serves all frames.

    None where nothing (or Load Image's placeholder) is linked. Raises BadImage.
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
    return Masks(mask, frames.size, frames.source.device)
