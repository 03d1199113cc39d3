"""Faces from Boxes, and Faces to SEGS: between FACES and what other nodes say of faces."""
from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor

from ..idcodeformer.types import DetectOptions, Face, Faces
from . import convert, faces, folders, host, layouts
from .detect import DetectFaces, outputs_of
from .managed import Kept, load_together
from .values import checked

_SAME = 0.5  # of a face's size: faces whose middles are nearer are one


class FacesFromBoxes:
    """Thin: reads boxes and lets a detector find the five points; see ``in_boxes``."""

    DESCRIPTION = (
        "Makes FACES of what other nodes found: bounding boxes and face landmarks of ComfyUI's own detection nodes, or "
        "SEGS of the Impact Pack. The detector looks for eyes, nose and mouth in each box; a larger box, as of a whole "
        "person, counts as the surest face in it. Boxes without a face are left out, and the picture says why."
    )
    CATEGORY = "face/ID-CodeFormer"
    FUNCTION = "convert"
    RETURN_TYPES, RETURN_NAMES = DetectFaces.RETURN_TYPES, DetectFaces.RETURN_NAMES  # of outputs_of
    OUTPUT_IS_LIST = DetectFaces.OUTPUT_IS_LIST
    OUTPUT_TOOLTIPS = (
        "The faces of every frame in the order of the boxes, for Restore Faces and Identity Score.",
        "How many faces there are, over all frames.",
        "The image with boxes, landmarks, numbers and scores.",
        "White inside the ellipse of each face.",
        "The faces, aligned, 512 px each, as a list; one black crop where there is none.",
    )
    SEARCH_ALIASES = ["segs to faces", "bbox to faces", "bounding box", "mediapipe face", "impact segs", "yolo face"]

    def __init__(self) -> None:
        self._kept = Kept()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        detectors = folders.choices("detector")
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": "The image that the boxes are of."}),
                "found": (
                    layouts.TYPES,
                    {"tooltip": "Bounding boxes, face landmarks, or SEGS. Boxes of one picture count for all frames."},
                ),
                "detector": (
                    detectors,
                    {"default": detectors[0], "tooltip": "Finds eyes, nose and mouth inside the boxes."},
                ),
            },
        }  # fmt: skip

    @classmethod
    def IS_CHANGED(cls, detector: str | None = None, **_: Any) -> str:
        return folders.fingerprint_of("detector", detector)

    @checked()
    def convert(self, image: Tensor, found: Any, detector: str) -> dict[str, Any]:
        frames = convert.frames_of(image)
        boxes = layouts.boxes_of(found, frames)
        with host.work():
            finder = self._kept.detector(detector)
            load_together([finder])
            return outputs_of(frames, in_boxes(frames, boxes, finder.ready()))


class FacesToSegs:
    """Thin: FACES in the layouts of others."""

    DESCRIPTION = (
        "Hands chosen faces to other nodes: as SEGS to the Impact Pack (detailers, filters), and as bounding boxes to "
        "ComfyUI's own nodes."
    )
    CATEGORY = "face/ID-CodeFormer"
    FUNCTION = "convert"
    RETURN_TYPES = ("SEGS", "BOUNDING_BOX")
    RETURN_NAMES = ("segs", "bboxes")
    OUTPUT_IS_LIST = (True, False)
    OUTPUT_TOOLTIPS = (
        "SEGS of every frame, as a list: the Impact Pack's are of one picture each.",
        "The boxes of every frame, for Draw BBoxes and others.",
    )
    SEARCH_ALIASES = ["faces to segs", "faces to bbox", "bounding box", "impact segs", "detailer"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": "The image that the faces were found in."}),
                "faces": ("FACES", {"tooltip": "From Detect Faces of this image."}),
                "crop_factor": (
                    "FLOAT",
                    {"default": 3.0, "min": 1.0, "max": 100.0, "step": 0.1, "round": 0.001,
                     "tooltip": "How much of the surroundings belongs to each SEG, in sizes of the face's box."},
                ),
            },
        }  # fmt: skip

    @checked()
    def convert(self, image: Tensor, faces: Any, crop_factor: float) -> tuple[list[Any], list[Any]]:
        frames = convert.frames_of(image)
        given = _faces_of(faces, frames)
        segs = []
        for number, here in enumerate(given):
            host.raise_if_cancelled()
            pixels = frames.part(number, number + 1)[0].movedim(0, -1)
            segs.append(layouts.segs(pixels, here, crop_factor))
        return segs, layouts.bounding_boxes(given)


def _faces_of(given: Any, frames: convert.Frames) -> tuple[Faces, ...]:
    found = faces.faces_of(given, frames)
    assert found is not None  # a required input
    return found


def in_boxes(frames: convert.Frames, boxes: Sequence[Sequence[layouts.Box]], finder: Any) -> faces.FoundFaces:
    """The face in every box, in their order; boxes without one, and a face's second box, are left out with the reason.

    A box in which no face is seen, because it is of a whole person, is searched with the rest of its frame.
    """
    progress = host.Progress()
    kept: list[Faces] = []
    dropped: list[tuple[tuple[Face, str], ...]] = []
    for start, stop in frames.chunks(most=faces.FRAMES_AT_ONCE):
        images = list(frames.part(start, stop))
        seen = finder.confirm(images, [_guesses(here) for here in boxes[start:stop]])
        whole = {n for n, here in enumerate(seen) if any(face.doubt for face in here)}
        around = finder([images[n] for n in sorted(whole)], DetectOptions()) if whole else ()
        searched = dict(zip(sorted(whole), around))
        for number, here in enumerate(seen):
            good, bad = _settled(here, searched.get(number, ()))
            kept.append(good)
            dropped.append(bad)
        progress(stop, len(frames))
    return faces.FoundFaces(tuple(kept), tuple(dropped), frames.size)


def _guesses(boxes: Sequence[layouts.Box]) -> Faces:
    from ..idcodeformer.detection.verification import face_in_box

    return tuple(face_in_box(box, score) for box, score in boxes)


def _settled(seen: Faces, searched: Faces) -> tuple[Faces, tuple[tuple[Face, str], ...]]:
    good: list[Face | None] = []
    why = [""] * len(seen)
    for number, face in enumerate(seen):
        if face.doubt:  # those that the search found, surest first, and that no box of its own shows
            own = [other for other in (*seen, *good) if other is not None and not other.doubt]
            inside = [f for f in searched if _covers(face.box, f) and not any(_same(f, other) for other in own)]
            good.append(inside[0] if inside else None)
            why[number] = "" if inside else "no face is seen in this box"
        elif any(_same(face, other) for other in good if other is not None):
            good.append(None)
            why[number] = "a box of the same face counts"
        else:
            good.append(face)
    left = tuple((face, reason) for face, reason in zip(seen, why) if reason)
    return tuple(face for face in good if face is not None), left


def _covers(box: Tensor, face: Face) -> bool:
    middle = face.landmarks.mean(0)
    return bool((middle >= box[:2]).all() and (middle <= box[2:]).all())


def _same(face: Face, other: Face) -> bool:
    from ..idcodeformer.detection.landmarks import face_size

    apart = float((face.landmarks.mean(0) - other.landmarks.mean(0)).norm())
    return apart < _SAME * float(face_size(torch.stack([face.landmarks, other.landmarks])).max())
