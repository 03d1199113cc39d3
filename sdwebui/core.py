"""All that the extension asks of the core, in one place, so that only this file follows when the core moves.

Imported where work begins, never with the package: it brings torch and the networks.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

import torch
from torch import Tensor

from ..idcodeformer import (
    CodeFormerRestorer,
    DetectOptions,
    Embeddings,
    FacePipeline,
    FaceReport,
    IDCodeFormerError,
    IdentityRecogniser,
    Restoration,
    RestoreOptions,
    cosine,
    load_detector,
    load_parser,
    load_recogniser,
    load_restorer,
)
from ..idcodeformer.compositing.parsing import find_parser
from ..idcodeformer.errors import BadImage, BadOption, CorruptWeights, MissingWeights, OutOfMemory, UnsupportedWeights
from ..idcodeformer.files.reading import read
from ..idcodeformer.guidance.options import GuidanceOptions
from ..idcodeformer.identity.people import embed_photos
from ..idcodeformer.identity.recogniser import mean_identity
from ..idcodeformer.runtime.memory import bytes_per_face
from ..idcodeformer.types import Detector, Faces, Progress
from ..idcodeformer.weights.store import find

__all__ = [
    "BadImage", "BadOption", "CorruptWeights", "Embeddings", "FacePipeline", "FaceReport", "IDCodeFormerError",
    "MissingWeights", "OutOfMemory", "Restoration", "UnsupportedWeights", "Wishes", "embed_person",
    "faces_of", "find", "find_parser", "load", "memory_needed", "moved", "read_photo", "restore", "similarities",
]  # fmt: skip

_FACES_AT_ONCE = 4  # what memory is asked for; the core then takes as many as fit
_BESIDE = 256 << 20  # bytes for detector, recogniser and the picture itself


@dataclass(frozen=True)
class Wishes:
    """What is asked for one picture. ``faces``: all, largest, centre, or reference (the one most like the photos)."""

    fidelity: float = 0.8
    visibility: float = 1.0
    minimum_identity: float = 0.0
    gray: str = "auto"
    faces: str = "all"
    upscale: float = 1.0
    guidance_steps: int = 0  # towards the person on the reference photos; 0: none
    guidance_strength: float = 1.0
    large_faces: str = "auto"  # faces larger than the network: auto, restore, keep or skip
    grain: str = "auto"  # auto, on or off
    colour: str = "low_band"  # low_band, adain or off

    def guidance(self) -> GuidanceOptions | None:
        """How faces are guided towards the reference photos; None for not at all. Raises BadOption."""
        guidance = GuidanceOptions(int(self.guidance_steps), self.guidance_strength)
        return guidance if guidance.steps else None

    def restore_options(self) -> RestoreOptions:
        """The core's options. Raises BadOption with the range."""
        if self.gray not in ("auto", "force", "off"):
            raise BadOption(f"The gray mode is '{self.gray}'; choose auto, force or off.")
        return RestoreOptions(
            w=self.fidelity, strength=self.visibility, upscale=self.upscale, gray=self.gray,
            min_identity=self.minimum_identity, large_faces=self.large_faces, grain=self.grain, colour=self.colour,
        )  # fmt: skip

    def detect_options(self) -> DetectOptions:
        """The core's choice of faces. Raises BadOption."""
        if self.faces == "reference":
            return DetectOptions(order="reference", keep="indices", indices=(0,))
        if self.faces not in ("all", "largest", "centre"):
            raise BadOption(f"The choice of faces is '{self.faces}'; choose all, largest, centre or reference.")
        return DetectOptions(keep=self.faces)


def restore(
    pipeline: FacePipeline, picture: Tensor, wishes: Wishes, person: Sequence[Embeddings] | None, progress: Progress
) -> Restoration:
    """One picture [3,H,W] in [0,1] through the pipeline; ``person`` is the mean of the reference photos' embeddings, by
    each recogniser of the pipeline.

    The only place where pictures are restored, for the restorer, the Extras entry and the API alike.
    """
    if wishes.faces == "reference" and person is None:
        raise BadOption("The face most like the reference was asked for; give a reference photo too.")
    if pipeline.recogniser is None and (person is not None or wishes.minimum_identity > 0):
        raise BadOption("Reference photos and a minimum identity need a recogniser; choose another than 'none'.")
    guidance = wishes.guidance()
    if guidance is not None and person is None:
        raise BadOption("Guidance needs a reference photo of the person; give one, or set the guidance steps to 0.")
    options, chosen = wishes.restore_options(), wishes.detect_options()
    return pipeline(picture[None], options, chosen, references=person, progress=progress, guidance=guidance)


def load(kind: str, file: Path, device: torch.device, precision: str) -> Any:
    """The part of that kind (restorer, detector, recogniser, parser) from its weight file, on ``device``."""
    if kind == "restorer":
        return load_restorer(file, device, precision)
    return {"detector": load_detector, "recogniser": load_recogniser, "parser": load_parser}[kind](file, device)


def moved(part: Any, device: torch.device, precision: str) -> Any:
    """The same part on another device; None for one whose weights are not torch's (SCRFD) and must be loaded anew."""
    if isinstance(part, CodeFormerRestorer):
        return CodeFormerRestorer(part.network, device, precision)
    if isinstance(part, IdentityRecogniser):
        return IdentityRecogniser(part.network, part.name, device)
    return type(part)(part.network, device) if hasattr(part, "network") else None


def memory_needed(restorer: CodeFormerRestorer) -> int:
    """Estimated bytes of weights and a forward pass of a few faces."""
    weights = sum(p.numel() * p.element_size() for p in restorer.network.parameters())
    return weights + _BESIDE + bytes_per_face(restorer.config) * _FACES_AT_ONCE


def faces_of(detector: Detector, picture: Tensor) -> Faces:
    """Every face of one picture [3,H,W] in [0,1]."""
    return detector([picture])[0]


def embed_person(photos: Sequence[Tensor], detector: Detector, recogniser: IdentityRecogniser) -> Embeddings:
    """One embedding [1,D] of the largest face of each photo [3,H,W]. Raises BadOption for a photo without a face."""
    names = [f"Reference photo {number}" for number in range(1, len(photos) + 1)]
    try:
        return mean_identity(embed_photos(photos, detector, recogniser, names))
    except BadImage as error:  # of a photo, which stops every picture alike
        raise BadOption(str(error)) from error


def similarities(recogniser: IdentityRecogniser, picture: Tensor, faces: Faces, person: Embeddings) -> list[float]:
    """Cosine in [-1,1] of every face of ``picture`` [3,H,W] to the person."""
    return cosine(recogniser.embed_faces([picture], [faces]), person)[:, 0].tolist()


def read_photo(file: Path) -> Tensor:
    """The first frame [3,H,W] of a picture file, upright. Raises BadImage."""
    return read(file).frames[0]
