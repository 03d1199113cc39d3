"""Identity Score."""
from __future__ import annotations

from typing import Any

from torch import Tensor

from ..idcodeformer.errors import BadOption
from ..idcodeformer.types import DetectOptions
from . import compare, convert, draw, faces, host, report
from .managed import built_in_detector, built_in_recogniser, load_together, model_of

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

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "reference": ("IMAGE", {"tooltip": "The originals, or photos of the person."}),
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

    def score(
        self, reference: Tensor, candidate: Tensor, threshold: float, compare: str, model: Any = None,
        reference_faces: Any = None, candidate_faces: Any = None,
    ) -> dict[str, Any]:  # fmt: skip
        with host.work():
            result = _compare(reference, candidate, compare, model, reference_faces, candidate_faces)
        text = report.comparison(result, threshold)
        chart = draw.chart(result.pairs, threshold, result.verdict(threshold))
        shown = {"images": host.show_on_node([convert.pil_of(chart)]), "text": text.splitlines()[:_SHOWN_LINES]}
        values = (result.mean, result.lowest, result.same_person(threshold), text, convert.crops_image(chart[None]))
        return {"ui": shown, "result": values}


def _compare(reference: Tensor, candidate: Tensor, how: str, model: Any, reference_faces: Any, candidate_faces: Any):
    """Everything that computes: the faces that were not given, their embeddings, the pairs."""
    detects = reference_faces is None or candidate_faces is None
    own = built_in_detector() if model is None and detects else None
    if model is not None:
        model_of(model).load(detector=detects)
        recogniser = model.recogniser()
    else:
        embedder = built_in_recogniser()
        load_together([embedder.managed, own and own.managed])
        recogniser = embedder.load()
    if recogniser is None:
        raise BadOption("Load ID-CodeFormer was told to load no recogniser; choose one there, or unlink 'model'.")
    sides = []
    for image, given, name in ((reference, reference_faces, "reference"), (candidate, candidate_faces, "candidate")):
        frames = convert.frames_of(image, name)
        found = faces.faces_of(given, frames, f"{name}_faces")
        if found is None:
            detector = model.detector() if model is not None else own.load()
            found = faces.find(frames, detector, DetectOptions(), progress=host.Progress()).faces
        sides.append(compare.Side(frames, found))
    return compare.compare(*sides, recogniser, how)
