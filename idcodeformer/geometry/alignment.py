"""Faces of a batch of pictures -> aligned crops, all at once on the device of the pictures."""
from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..errors import BadOption
from ..runtime.validation import check_images
from ..types import Border, Crops, Face, empty_crops
from .templates import fit_lmeds
from .warping import warp

_ALIGN_PIXELS = 1 << 25  # px of pictures on the device at once while they are aligned; 16 frames of 1080p
_FACES_HELD = 64  # crops that stay on the device between the steps; more wait where the pictures are


def align(
    images: Tensor | Sequence[Tensor],
    faces: Sequence[Sequence[Face]],
    size: int = 512,
    border: Border = "constant",
    antialias: bool = True,
) -> Crops:
    """Crops of ``size`` px aligned to the FFHQ template, in the order of ``images`` and of the faces of each.

    ``images``: [B,3,H,W] or a sequence of [3,H,W], in [0,1] or uint8; ``faces``: the faces of each. ``border``: what
    lies outside a picture is the reference's grey ("constant") or the mirrored picture ("reflect"). Raises BadImage and
    BadOption.
    """
    batch = check_images(images)
    if len(faces) != len(batch):
        raise BadOption(f"{len(faces)} lists of faces for {len(batch)} images; give one list (maybe empty) per image.")
    if size < 1:
        raise BadOption(f"The crop size is {size} px; it must be at least 1.")
    sizes = tuple((image.shape[1], image.shape[2]) for image in batch)
    device = batch[0].device if batch else torch.device("cpu")
    landmarks = [face.landmarks for found in faces for face in found]
    if not landmarks:
        return empty_crops(size, sizes, device)
    matrices = fit_lmeds(torch.stack(landmarks), size)
    index = torch.tensor([number for number, found in enumerate(faces) for _ in found])
    pixels = warp(batch, matrices, index, size, border, antialias=antialias)
    return Crops(pixels, matrices.to(device), index.to(device), sizes)


def align_on(
    device: torch.device, images: list[Tensor], faces: Sequence[Sequence[Face]], size: int, border: Border
) -> Crops:
    """``align`` on ``device``, which the pictures visit a few at a time; pixels in [0,1], all else on the CPU."""
    held = device if sum(map(len, faces)) <= _FACES_HELD else images[0].device
    sizes = tuple((int(image.shape[1]), int(image.shape[2])) for image in images)
    parts: list[Crops] = []
    for start, stop in runs_of(images):
        if any(faces[start:stop]):
            here = [image.to(device) for image in images[start:stop]]
            part = align(here, faces[start:stop], size, border)
            pixels = part.pixels.clamp_(0, 1).to(held)
            parts.append(Crops(pixels, part.matrices.cpu(), part.image_index.cpu() + start, sizes))
    if len(parts) < 2:
        return parts[0] if parts else empty_crops(size, sizes, device)
    joined = (torch.cat([getattr(p, name) for p in parts]) for name in ("pixels", "matrices", "image_index"))
    return Crops(*joined, sizes)


def runs_of(images: Sequence[Tensor]) -> Iterator[tuple[int, int]]:
    """(start, stop) of runs of images that together stay under a bound of pixels, each at least one image."""
    start, held = 0, 0
    for number, image in enumerate(images):
        size = image.shape[-2] * image.shape[-1]
        if held and held + size > _ALIGN_PIXELS:
            yield start, number
            start, held = number, 0
        held += size
    if held:
        yield start, len(images)
