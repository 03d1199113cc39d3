"""The networks that a run needs, by the names in its settings."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BadOption, MissingWeights
from ..files.reading import decode, read
from ..types import Detector, Embeddings

if TYPE_CHECKING:
    from ..compositing.parsing import FaceParser
    from ..identity.people import People
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
    photos = settings.references or (settings.people is not None and not Path(settings.people).is_file())
    detector = None if aligned and not photos else load_detector(models.detector, device)
    recogniser = load_scorer(models.recogniser, device)
    parser = None if aligned else load_face_parser(models.parser, device)
    return FacePipeline(restorer, detector, recogniser, parser, load_guide(settings, recogniser))


def load_guide(settings: RestoreSettings, recogniser: IdentityRecogniser | None) -> IdentityRecogniser | None:
    """The recogniser that guides, or knows the people of a file; None where ``recogniser``, which scores, does both.

    One that is named; the one that made a file of people; else, so that the score is not the guide's own, the first one
    there with other weights than ``recogniser``. Raises what the loader raises.
    """
    from ..identity.people import read_people

    models = settings.models
    guiding, filed = settings.guidance.steps > 0, settings.people is not None and Path(settings.people).is_file()
    if models.guide and (guiding or filed):
        return load_scorer(models.guide, models.device)
    if filed:
        name = read_people(settings.people).recogniser
        return None if recogniser is not None and recogniser.name == name else _called(name, settings)
    return second_recogniser(recogniser, models.device) if guiding and recogniser is not None else None


def _called(name: str, settings: RestoreSettings) -> IdentityRecogniser | None:
    """The recogniser that made the file of people. Raises MissingWeights where no file here has its name."""
    from ..weights.store import available

    for found in available("recogniser"):
        if name in (found.path.stem, found.name):
            return load_scorer(str(found.path), settings.models.device)
    raise MissingWeights(
        f"{settings.people} was made by the recogniser {name}, which is not here; name its file (--guide-by FILE)."
    )


def second_recogniser(first: IdentityRecogniser, device: str | None) -> IdentityRecogniser | None:
    """Another recogniser than ``first`` among the files that are there, those that a user has put there first; None
    where there is none."""
    from ..weights.store import available

    for found in sorted(available("recogniser"), key=lambda each: each.embedded):
        if found.path.stem != first.name:
            other = load_scorer(str(found.path), device)
            if other is not None and other.digest != first.digest:
                return other
    return None


def load_galleries(
    source: str | Path, pipeline: FacePipeline, tell: Callable[[str], None] | None = None
) -> list[People]:
    """The people of a folder by each recogniser of ``pipeline``; those of a file by the one that made it.

    ``tell`` is called with a sentence for every photo that was left out. Raises what ``load_people`` raises.
    """
    from ..identity.people import load_people

    known = [one for one in (pipeline.recogniser, pipeline.guide) if one is not None]
    if not known:
        raise BadOption("People need a recogniser; choose another than 'none'.")
    if pipeline.guide is pipeline.recogniser:
        known = known[:1]
    if Path(source).is_file():  # pipeline.guide is the one that made it, or was named
        return [load_people(source, None, pipeline.guide or known[0])]
    galleries = [load_people(source, pipeline.detector, one, remember=True) for one in known]
    for doubt in galleries[0].doubts if tell is not None else ():
        tell(f"{'doubtful' if doubt.kept else 'left out'}: {doubt.photo}: {doubt.reason}")
    return galleries


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
