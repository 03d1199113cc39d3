"""Identity Score."""
from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..idcodeformer.files.drawing import image_of
from ..idcodeformer.types import DetectOptions, Embeddings, Faces
from . import compare, convert, draw, faces, host, report
from .managed import Kept, Part, load_together, recogniser_of
from .people import LinkedPeople
from .values import checked

_SHOWN_LINES = 60  # on the node


class IdentityScore:
    """Thin: options and conversions; see compare.compare."""

    DESCRIPTION = (
        "Tells how much the faces of two images are the same person, as the cosine similarity of their embeddings: "
        "about 0 for strangers, up to 1. Compares originals with restored frames, or photos of a person with any "
        "images. A picture without a face is reported, not an error."
    )
    CATEGORY = "face/ID-CodeFormer"
    FUNCTION = "score"
    OUTPUT_NODE = True
    RETURN_TYPES = ("FLOAT", "FLOAT", "BOOLEAN", "STRING", "IMAGE")
    RETURN_NAMES = ("mean", "lowest", "same_person", "report", "chart")
    OUTPUT_TOOLTIPS = (
        "Mean score of all pairs; 0 where nothing could be compared.",
        "Lowest score of all pairs; 0 where nothing could be compared.",
        "Whether every frame was compared and every score reaches the threshold.",
        "The verdict, and a line for each pair.",
        "The compared faces side by side with their scores.",
    )
    SEARCH_ALIASES = ["face similarity", "identity similarity", "arcface", "face distance", "compare faces", "id-sim"]

    def __init__(self) -> None:
        self._kept = Kept()
        self._known: _Known | None = None

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "reference": (
                    "IMAGE,ID_PERSON",
                    {"tooltip": "The originals, or photos of the person, or people from Load Person."},
                ),
                "candidate": ("IMAGE", {"tooltip": "What is to be judged: the restored or generated frames."}),
                "threshold": (
                    "FLOAT",
                    {"default": 0.35, "min": -1.0, "max": 1.0, "step": 0.01, "round": 0.001, "display": "slider",
                     "tooltip": "From which score on two faces count as one person. About 0.35 suits the built-in "
                     "recogniser, 0.3 to 0.4 ArcFace files."},
                ),
                "compare": (
                    list(compare.HOW),
                    {"default": "auto",
                     "tooltip": "frame_by_frame: reference 1 with candidate 1 and so on (or one reference with all), "
                     "several faces matched by identity. one_person: all reference photos show one person; the most "
                     "alike face of each frame counts. auto: the first where the numbers of frames allow it."},
                ),
            },
            "optional": {
                "model": ("ID_CODEFORMER", {"tooltip": "Its recogniser is used; without it the built-in one."}),
                "reference_faces": ("FACES", {"tooltip": "From Detect Faces of the reference. Without it all count."}),
                "candidate_faces": ("FACES", {"tooltip": "From Detect Faces of the candidate. Without it all count."}),
            },
        }  # fmt: skip

    @checked()
    def score(
        self, reference: Any, candidate: Tensor, threshold: float, compare: str, model: Any = None,
        reference_faces: Any = None, candidate_faces: Any = None,
    ) -> dict[str, Any]:  # fmt: skip
        with host.work():
            result = self._compare(reference, candidate, compare, model, reference_faces, candidate_faces)
        text = report.comparison(result, threshold)
        chart = draw.chart(result.pairs, threshold, result.verdict(threshold))
        shown = {"images": host.show_on_node([image_of(chart)]), "text": text.splitlines()[:_SHOWN_LINES]}
        values = (result.mean, result.lowest, result.same_person(threshold), text, convert.joined([chart[None]], 0))
        return {"ui": shown, "result": values}

    def _compare(self, reference, candidate, how: str, model, reference_faces, candidate_faces):
        """Everything that computes: the faces that were not given, their embeddings, the pairs."""
        recogniser = recogniser_of(model, self._kept)
        if isinstance(reference, LinkedPeople):
            return self._compare_people(reference, candidate, recogniser, model, candidate_faces)
        detector = None
        if reference_faces is None or candidate_faces is None:
            detector = self._kept.detector() if model is None else model.detector()
        load_together([recogniser, detector])
        photos = convert.frames_of(reference, "reference")
        first = self._reference(photos, reference_faces, recogniser, detector)
        frames = convert.frames_of(candidate, "candidate")
        second = compare.Side(frames, _faces(frames, candidate_faces, detector))
        return compare.compare(first, second, recogniser.ready(), how)

    def _compare_people(self, known: LinkedPeople, candidate, recogniser: Part, model, candidate_faces):
        """With people of Load Person: judged by ``recogniser``, or by the one that made them where photos lack."""
        frames = convert.frames_of(candidate, "candidate")
        detector = None
        if candidate_faces is None:
            detector = self._kept.detector() if model is None else model.detector()
        load_together([recogniser, known.part, detector])
        judge, guide = recogniser.ready(), known.part.ready()
        people = known.by(judge)
        notes = [f"{guide.name} guides where these people are linked to Restore Faces; {judge.name} judges"]
        if people is None:
            notes = [f"judged by {guide.name}, which also guides: the file has no photos for {judge.name}"]
            people, judge = known.people, guide
        elif people is known.people:
            notes = [f"{guide.name} judges and also guides: another recogniser in Load Person makes the score honest"]
        pictures = [photos[0].pixels if photos else None for photos in known.photos]
        second = compare.Side(frames, _faces(frames, candidate_faces, detector))
        result = compare.with_people(people, pictures, second, judge)
        return replace(result, notes=(*notes, *result.notes))

    def _reference(self, frames: convert.Frames, given: Any, recogniser: Part, detector: Part | None) -> compare.Side:
        """The reference with its faces, and their embeddings where it is the one of the last execution."""
        faces.faces_of(given, frames, f"{frames.name}_faces")
        digest = frames.digest()
        if self._known is None or not self._known.fits(digest, given, recogniser):
            found = _faces(frames, given, detector)
            self._known = _Known(digest, given, weakref.ref(recogniser), found, {})
        return compare.Side(frames, self._known.faces, self._known.embeddings)


@dataclass(frozen=True, eq=False)
class _Known:
    """What is remembered of a reference: no pixel of it."""

    digest: str
    given: Any
    recogniser: weakref.ref[Part]
    faces: tuple[Faces, ...]
    embeddings: dict[int, Embeddings]

    def fits(self, digest: str, given: Any, recogniser: Part) -> bool:
        return self.digest == digest and self.given is given and self.recogniser() is recogniser


def _faces(frames: convert.Frames, given: Any, detector: Part | None) -> tuple[Faces, ...]:
    found = faces.faces_of(given, frames, f"{frames.name}_faces")
    if found is not None:
        return found
    assert detector is not None
    return faces.find(frames, detector.ready(), DetectOptions(), progress=host.Progress()).faces
