"""Paste Faces."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..idcodeformer.errors import BadImage, BadOption
from ..idcodeformer.runtime.validation import SMALLEST_CROP
from ..idcodeformer.types import RestoreOptions
from . import convert, faces, host
from .values import checked


class PasteFaces:
    """Thin: puts crops back with the core's paste."""

    DESCRIPTION = (
        "Puts edited face crops back where Detect Faces found them: the crops of Detect Faces, after any nodes that "
        "work on faces, or made by hand. Crops may have any size; the order is that of Detect Faces."
    )
    CATEGORY = "face/ID-CodeFormer"
    FUNCTION = "paste"
    INPUT_IS_LIST = True  # the crops of Detect Faces are a list, and all are needed at once
    RETURN_TYPES = ("IMAGE", "MASK")
    RETURN_NAMES = ("image", "mask")
    OUTPUT_TOOLTIPS = ("The image with the crops in it.", "How much of each pixel was replaced.")
    SEARCH_ALIASES = ["paste face", "uncrop face", "face composite", "paste back", "stitch face"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": "The image that Detect Faces looked at."}),
                "faces": ("FACES", {"tooltip": "From Detect Faces of this image."}),
                "crops": ("IMAGE", {"tooltip": "One crop for each chosen face, in their order, as list or batch."}),
                "visibility": (
                    "FLOAT",
                    {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.05, "round": 0.001, "display": "slider",
                     "tooltip": "How much of the crops is blended over the image."},
                ),
            },
            "optional": {
                "mask": ("MASK", {"tooltip": "Only here anything changes. One mask for all frames, or one for each."}),
            },
        }  # fmt: skip

    @checked()
    def paste(self, image: Any, faces: Any, crops: list[Tensor], visibility: Any, mask: Any = None):
        named = (("image", image), ("faces", faces), ("visibility", visibility), ("mask", mask or [None]))
        image, given, visibility, limit = (_only(name, each) for name, each in named)
        frames = convert.frames_of(image)
        with host.work():
            return _pasted(frames, given, crops, RestoreOptions(strength=visibility), limit)


def _only(name: str, values: list[Any]) -> Any:
    """The one value of an input that is no list of crops. Raises BadOption for more, which would be passed over."""
    if len(values) != 1:
        raise BadOption(f"'{name}' is a list of {len(values)}; link one, for several pictures a batch of one size.")
    return values[0]


def _pasted(frames: convert.Frames, given: Any, crops: list[Tensor], options: RestoreOptions, mask: Any):
    from ..idcodeformer.compositing.blend import paste
    from ..idcodeformer.geometry.alignment import align
    from ..idcodeformer.geometry.resizing import resize

    found = faces.faces_of(given, frames)
    if found is None:
        raise BadOption("'faces' is not linked; link the faces output of Detect Faces.")
    edited = [frame for crop in crops for frame in _square(crop)]
    count = sum(map(len, found))
    if len(edited) != count and count:
        raise BadOption(f"{len(edited)} crops for {count} faces; give one for each face that Detect Faces chose.")
    masks = convert.masks_for(mask, frames)
    image, share = convert.Output(frames, frames.size), convert.empty_mask(len(frames), frames.size)
    for number, here in enumerate(found):
        host.raise_if_cancelled()
        pixels = frames.part(number, number + 1)
        image.write(number, pixels[0])
        mine, edited = edited[: len(here)], edited[len(here) :]
        if not here:
            continue
        side = max(crop.shape[-1] for crop in mine)
        after = torch.cat([resize(crop[None], (side, side), "bicubic") for crop in mine])
        before = align(pixels, [here], side)  # as Detect Faces does
        limits = None if masks is None else list(masks.part(number, number + 1))
        pictures, shares = paste(pixels, before, after.clamp(0, 1).to(pixels.device), options, None, limits)
        image.write(number, pictures[0])
        share[number].copy_(shares[0][0])
    return image.image, share


def _square(crop: Any) -> list[Tensor]:
    """[3,S,S] of every frame. Raises BadImage for what is not square, or too small to show a face."""
    frames = convert.frames_of(crop, "crops")
    high, wide = frames.size
    if high != wide:
        raise BadImage(f"A crop has {wide}x{high} px; crops are square, as from Detect Faces.")
    if high < SMALLEST_CROP:
        raise BadImage(f"A crop has {wide}x{high} px; crops have at least {SMALLEST_CROP}x{SMALLEST_CROP}.")
    return list(frames.part(0, len(frames)))
