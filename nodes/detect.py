"""Detect Faces."""
from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor

from ..idcodeformer.errors import BadOption
from ..idcodeformer.files.drawing import marked
from ..idcodeformer.types import Faces
from . import convert, draw, faces, folders, host
from .managed import Kept, Part, load_together, recogniser_of
from .people import LinkedPeople, people_of
from .values import checked

_CROP_SIDE = 512  # px
_SHOWN_FRAMES, _SHOWN_SIDE = 8, 1024  # pictures on the node, px of their longer side


class DetectFaces:
    """Thin: options and conversions; see faces.find."""

    DESCRIPTION = (
        "Finds faces in every frame and chooses which of them the following nodes work on: all, the largest, the most "
        "central, some by number, those inside a mask, or the one most like a reference photo. The picture on the node "
        "shows what was found, numbered as chosen; what was left out is grey, with the reason."
    )
    CATEGORY = "face/ID-CodeFormer"
    FUNCTION = "detect"
    RETURN_TYPES = ("FACES", "INT", "IMAGE", "MASK", "IMAGE")
    RETURN_NAMES = ("faces", "count", "preview", "mask", "crops")
    OUTPUT_IS_LIST = (False, False, False, False, True)
    OUTPUT_TOOLTIPS = (
        "The chosen faces of every frame, for Restore Faces and Identity Score.",
        "How many faces were chosen, over all frames.",
        "The image with boxes, landmarks, numbers and scores.",
        "White inside the ellipse of each chosen face.",
        "The chosen faces, aligned, 512 px each, as a list; one black crop where there is none.",
    )
    SEARCH_ALIASES = ["face detection", "find faces", "retinaface", "scrfd", "face crop", "face mask", "face bbox"]

    def __init__(self) -> None:
        self._kept = Kept()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        detectors = folders.choices("detector")
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": "One picture, or the frames of a video in one batch."}),
                "detector": (
                    detectors,
                    {
                        "default": detectors[0],
                        "tooltip": "The built-in RetinaFace; RetinaFace files in models/facedetection; SCRFD files "
                        "(det_10g.onnx) in models/insightface where the insightface package is installed.",
                    },
                ),
                "confidence": (
                    "FLOAT",
                    {"default": 0.8, "min": 0.0, "max": 1.0, "step": 0.01, "round": 0.001, "display": "slider",
                     "tooltip": "How sure the detector must be, as a probability. Lower finds more, also wrong ones."},
                ),
                "min_eye_distance": (
                    "FLOAT",
                    {"default": 5.0, "min": 0.0, "max": 2048.0, "step": 1.0, "round": 0.1,
                     "tooltip": "Smaller faces are left out: least distance between the eyes, in pixels of the image. "
                     "A face is about two and a half times as wide."},
                ),
                "max_faces": (
                    "INT",
                    {"default": 0, "min": 0, "max": 1000,
                     "tooltip": "At most so many faces a frame, in the chosen order. 0: no limit."},
                ),
                "order": (
                    ["size", "left_to_right", "score", "centre", "reference"],
                    {"default": "size",
                     "tooltip": "How faces are numbered: largest first, from the left, surest first, most central "
                     "first, or most like the reference first."},
                ),
                "keep": (
                    ["all", "largest", "centre", "indices", "mask", "reference"],
                    {"default": "all",
                     "tooltip": "Which faces are chosen: all, the largest, the most central, those numbered in "
                     "'indices', those whose centre lies inside 'mask', or the one most like 'reference'."},
                ),
                "indices": (
                    "STRING",
                    {"default": "0",
                     "tooltip": "For keep = indices: numbers from 0 in the chosen order, as '0, 2' or '0-3'."},
                ),
                "min_similarity": (
                    "FLOAT",
                    {"default": 0.0, "min": -1.0, "max": 1.0, "step": 0.01, "round": 0.001,
                     "tooltip": "With order or keep = reference: faces less like the reference than this are left out "
                     "(cosine similarity), so that no stranger is chosen in frames without the person."},
                ),
            },
            "optional": {
                "mask": ("MASK", {"tooltip": "For keep = mask. One mask for all frames, or one for each."}),
                "reference": ("IMAGE", {"tooltip": "Photos of the person sought; the largest face of each counts."}),
                "model": (
                    "ID_CODEFORMER",
                    {"tooltip": "Its recogniser compares with the reference. Without it the built-in one does."},
                ),
                "person": (
                    "ID_PERSON",
                    {"tooltip": "From Load Person, in place of 'reference'. Of several people each face counts by the "
                     "one that it is most like."},
                ),
            },
        }  # fmt: skip

    @classmethod
    def VALIDATE_INPUTS(cls, indices: Any = None) -> bool | str:
        try:
            faces.parse_indices("" if indices is None else str(indices))
        except BadOption as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, detector: str | None = None, **_: Any) -> str:
        return folders.fingerprint_of("detector", detector)

    @checked()
    def detect(
        self, image: Tensor, detector: str, confidence: float, min_eye_distance: float, max_faces: int, order: str,
        keep: str, indices: str, min_similarity: float = 0.0, mask: Tensor | None = None,
        reference: Tensor | None = None, model: Any = None, person: Any = None,
    ) -> dict[str, Any]:  # fmt: skip
        frames = convert.frames_of(image)
        options = faces.options_of(confidence, min_eye_distance, max_faces, order, keep, indices)
        sought = options.order == "reference"
        known = people_of(person)
        if sought and (reference is None) == (known is None):
            raise BadOption(
                "order or keep is 'reference'; link photos of the person to 'reference'"
                + (", or 'person' from Load Person." if known is None else " or 'person', not both.")
            )
        with host.work():
            finder = self._kept.detector(detector)
            if not sought:
                load_together([finder])
            likeness = self._likeness(finder, reference, known, model) if sought else None
            masks = convert.masks_for(mask, frames)
            found = faces.find(frames, finder.ready(), options, masks, likeness, min_similarity, host.Progress())
            return outputs_of(frames, found)

    def _likeness(self, finder: Part, reference: Tensor | None, known: LinkedPeople | None, model: Any):
        """How like the people of ``known``, or the person on ``reference``, faces are."""
        recogniser = recogniser_of(model, self._kept) if known is None else known.part
        load_together([finder, recogniser])
        if known is not None:
            return faces.likeness_to(known.people.identities, recogniser.ready())
        photos = convert.frames_of(reference, "reference")
        return faces.likeness_to(faces.person_in(photos, finder.ready(), recogniser.ready()), recogniser.ready())


def outputs_of(frames: convert.Frames, found: faces.FoundFaces) -> dict[str, Any]:
    """What a node shows and hands out that has found faces."""
    preview = convert.Output(frames, frames.size, extra=False)
    mask = convert.empty_mask(len(frames), frames.size)
    shown: list[Any] = []
    crops: list[Tensor] = []
    for start, stop in frames.chunks():
        pixels = frames.part(start, stop)
        for number, image in enumerate(pixels, start):
            host.raise_if_cancelled()
            drawn = marked(image, found.faces[number], dropped=found.dropped[number])
            preview.write(number, drawn)
            mask[number].copy_(draw.faces_mask(found.size, found.faces[number])[0])
            if number < _SHOWN_FRAMES:
                shown.append(draw.thumbnail(drawn, _SHOWN_SIDE))
        crops += _crops(pixels, found.faces[start:stop])
    crops = crops or [torch.zeros(1, _CROP_SIDE, _CROP_SIDE, 3, device=host.output_device())]
    result = (found, found.count, preview.image, mask, crops)
    return {"ui": {"images": host.show_on_node(shown)}, "result": result}


def _crops(pixels: Tensor, here: Sequence[Faces]) -> list[Tensor]:
    """IMAGE [1,512,512,3] of each face."""
    from ..idcodeformer.geometry.alignment import align

    if not any(here):
        return []
    crops = align(pixels, here, _CROP_SIDE).pixels
    return [convert.joined([crop[None]], _CROP_SIDE) for crop in crops]
