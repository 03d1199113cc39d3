"""Faces of a batch of pictures -> aligned crops, all at once on the device of the pictures."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import BadOption
from ..runtime.validation import check_images
from ..types import Border, Crops, Face, empty_crops
from .templates import fit_lmeds
from .warping import warp


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
