"""How other nodes say where faces are: the host's bounding boxes and face landmarks, and SEGS of the Impact Pack."""
from __future__ import annotations

from collections import namedtuple
from typing import Any, Sequence

import torch
from torch import Tensor

from ..idcodeformer.errors import BadOption
from ..idcodeformer.files.drawing import box_of
from ..idcodeformer.types import Face, Faces
from . import convert, draw

Box = tuple[Tensor, float]  # [4] = x0,y0,x1,y1 in px, and how sure

TYPES = "BOUNDING_BOX,BOUNDING_BOXES,SEGS,FACE_LANDMARKS"

# The names and their order are the Impact Pack's (modules/impact/core.py); its nodes read and replace them by name.
SEG = namedtuple(
    "SEG", "cropped_image cropped_mask confidence crop_region bbox label control_net_wrapper", defaults=[None]
)


def boxes_of(found: Any, frames: convert.Frames) -> list[list[Box]]:
    """The boxes of every frame. What is said of one picture counts for all frames. Raises BadOption.

    ``found``: a box {"x", "y", "width", "height"}, perhaps with "score"; a list of them, or such a list for each frame
    (BOUNDING_BOX); ((height, width), [SEG, ...]) (SEGS); or {"frames": [[{"bbox_xyxy", "score"}]], "image_size"}
    (FACE_LANDMARKS).
    """
    size = None
    try:
        if isinstance(found, dict) and "frames" in found:
            size = tuple(found["image_size"])
            lists = [[_box(*face["bbox_xyxy"], face.get("score", 1.0)) for face in here] for here in found["frames"]]
        elif isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], (list, tuple)):
            size = tuple(found[0][:2])
            lists = [[_box(*seg.bbox[:4], seg.confidence) for seg in found[1]]]
        else:
            lists = [[_of_dict(box) for box in here] for here in _per_frame(found)]
    except (TypeError, KeyError, AttributeError, ValueError, IndexError) as error:
        raise BadOption(
            f"'found' is {type(found).__name__} and holds no boxes ({error}); link boxes, face landmarks or SEGS."
        ) from error
    if size is not None and tuple(map(int, size)) != frames.size:
        there, here = (f"{int(width)}x{int(height)}" for height, width in (size, frames.size))
        raise BadOption(f"'found' is of a picture of {there} px, the image has {here}; link the image that it is of.")
    if len(lists) == 1:
        return lists * len(frames)
    if len(lists) != len(frames):
        raise BadOption(f"'found' has boxes of {len(lists)} frames, the image has {len(frames)}; link the same image.")
    return lists


def _per_frame(found: Any) -> Sequence[Sequence[dict]]:
    if isinstance(found, dict):
        return [[found]]
    return found if found and isinstance(found[0], list) else [found]


def _of_dict(box: dict) -> Box:
    x, y = float(box["x"]), float(box["y"])
    return _box(x, y, x + float(box["width"]), y + float(box["height"]), box.get("score", 1.0))


def _box(x0: Any, y0: Any, x1: Any, y1: Any, score: Any) -> Box:
    box = torch.tensor([float(x0), float(y0), float(x1), float(y1)])
    if not bool(box.isfinite().all()):
        raise ValueError(f"a box at {box.tolist()}")
    return box, min(1.0, max(0.0, float(score)))


def bounding_boxes(faces: Sequence[Faces]) -> list[list[dict[str, Any]]]:
    """The host's BOUNDING_BOX, as its detection nodes give it: a list of boxes for every frame."""
    return [[_as_dict(face) for face in here] for here in faces]


def _as_dict(face: Face) -> dict[str, Any]:
    x0, y0, x1, y1 = box_of(face)
    return {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0, "label": "face", "score": float(face.score)}


def segs(pixels: Tensor, faces: Faces, crop_factor: float) -> tuple[tuple[int, int], list[Any]]:
    """SEGS of one frame [H,W,C]: for every face its ellipse as mask, in a region ``crop_factor`` times its box."""
    size = (int(pixels.shape[0]), int(pixels.shape[1]))
    return size, [_seg(pixels, face, size, crop_factor) for face in faces]


def _seg(pixels: Tensor, face: Face, size: tuple[int, int], factor: float) -> Any:
    x0, y0, x1, y1 = box_of(face)
    (left, right), (top, bottom) = _span(x0, x1, factor, size[1]), _span(y0, y1, factor, size[0])
    mask = draw.faces_mask(size, [face])[0, top:bottom, left:right]
    crop = pixels[None, top:bottom, left:right].float().cpu().clone()
    box = (_within(round(x0), size[1]), _within(round(y0), size[0]), _within(round(x1), size[1]),
           _within(round(y1), size[0]))  # fmt: skip
    return SEG(crop, mask.numpy().copy(), float(face.score), [left, top, right, bottom], box, "face", None)


def _span(low: float, high: float, factor: float, most: int) -> tuple[int, int]:
    """(start, stop) of ``factor`` times this stretch around its middle, moved into 0..most and at least 1 long."""
    length = min(most, max(1, round((high - low) * factor)))
    start = min(max(0, round((low + high - length) / 2)), most - length)
    return start, start + length


def _within(value: int, most: int) -> int:
    return min(max(0, value), most)
