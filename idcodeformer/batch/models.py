"""The networks that a run needs, by the names in its settings."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..files.reading import decode, read
from ..types import Detector, Embeddings

if TYPE_CHECKING:
    from ..compositing.parsing import FaceParser
    from ..identity.recogniser import IdentityRecogniser
    from ..pipeline import FacePipeline
    from .settings import RestoreSettings


def load_pipeline(settings: RestoreSettings) -> FacePipeline:
    """The pipeline for ``settings``. Raises what the loaders raise."""
    from ..detection import load_detector
    from ..pipeline import FacePipeline
    from ..restoration.codeformer import load_restorer

    models, aligned = settings.models, settings.aligned
    device = models.device
    restorer = load_restorer(models.restorer or default_model(), device, models.precision)
    detector = None if aligned and not settings.references else load_detector(models.detector, device)
    recogniser = load_scorer(models.recogniser, device)
    parser = None if aligned else load_face_parser(models.parser, device)
    guide = load_scorer(models.guide, device) if settings.guidance.steps and models.guide else None
    return FacePipeline(restorer, detector, recogniser, parser, guide)


def embed_person(
    photos: Sequence[str | Path | bytes], detector: Detector, recogniser: IdentityRecogniser
) -> Embeddings:
    """Embeddings [len(photos),D] of the largest face of each photo: a file, or the bytes of one.

    Raises BadImage naming a photo without a face.
    """
    from ..identity.people import embed_photos

    names = [f"Reference photo {n}" if isinstance(photo, bytes) else str(photo) for n, photo in enumerate(photos)]
    pictures = [decode(photo, name) if isinstance(photo, bytes) else read(photo) for photo, name in zip(photos, names)]
    return embed_photos([picture.frames[0] for picture in pictures], detector, recogniser, names)


def default_model() -> str:
    """The published 512-px network where a user has put it, else the built-in one."""
    from ..weights.store import available

    there = {found.name for found in available("restorer")}
    return "codeformer" if "codeformer" in there else "mini_id_codeformer"


def load_scorer(name: str, device: str | None) -> IdentityRecogniser | None:
    """The recogniser of ``name``, None for "none"."""
    from ..identity.recogniser import load_recogniser

    return None if name.lower() == "none" else load_recogniser(name, device)


def load_face_parser(name: str, device: str | None) -> FaceParser | None:
    """The parser of ``name``, None for "none"."""
    from ..compositing.parsing import load_parser

    return None if name.lower() == "none" else load_parser(name, device)
