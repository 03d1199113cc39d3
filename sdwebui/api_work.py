"""What the routes of ``api`` do."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import files, host, job, settings
from .models import Choice, Models

if TYPE_CHECKING:
    from .api import RestoreRequest, ScoreRequest
    from .core import FaceReport


def list_models() -> dict[str, list[str]]:
    """The names that requests may give."""
    return {"model": files.choices("restorer")} | {kind: files.choices(kind) for kind in ("detector", "recogniser")}


def restore(models: Models, request: RestoreRequest) -> dict[str, Any]:
    """The picture restored, in the host's queue of jobs. Raises the core's sentences and Interrupted."""
    from . import pictures
    from .core import Wishes

    picture = pictures.decode(request.image)
    photos = pictures.photos_of(request.reference)
    wishes = Wishes(
        request.fidelity, request.visibility, request.minimum_identity, request.gray, request.faces, request.upscale,
        request.guidance_steps, request.guidance_strength, request.large_faces, request.grain, request.colour,
    )  # fmt: skip
    with host.job(job.NAME):
        outcome = job.run(models, _choice(request), pictures.from_pil(picture), wishes, photos)
    result = pictures.replaced(picture, outcome.image)
    return {
        "image": pictures.encode(result), "model": outcome.model, "summary": outcome.summary(),
        "faces": [_line(face) for face in outcome.report],
    }  # fmt: skip


def score(models: Models, request: ScoreRequest) -> dict[str, Any]:
    """Every face of the picture against the person of the reference photos. Raises the core's sentences."""
    from . import core, pictures

    picture, photos = pictures.from_pil(pictures.decode(request.image)), pictures.photos_of(request.reference)
    if not photos:
        raise core.BadOption("'reference' is empty; give at least one photo of the person.")
    choice = _choice(request)
    with host.job(job.NAME):
        try:
            (person,) = models.person(choice, photos) or (None,)
            faces = core.faces_of(models.part("detector", choice.detector), picture)
            recogniser = models.part("recogniser", choice.recogniser)
            identities = core.similarities(recogniser, picture, faces, person)
        finally:
            models.rest()
    lines = [
        {"box": face.box.tolist(), "detection": face.score, "identity": identity}
        for face, identity in zip(faces, identities)
    ]
    return {"recogniser": recogniser.name, "best": max(identities, default=None), "faces": lines}


def _choice(request: Any) -> Choice:
    usual = settings.choice()
    model = getattr(request, "model", None)
    return Choice(model or usual.restorer, request.detector or usual.detector, request.recogniser or usual.recogniser)


def _line(face: FaceReport) -> dict[str, Any]:
    return {
        "face": face.face, "box": list(face.box), "detection": face.score, "status": face.status,
        "reason": face.reason, "identity": face.id_sim_input, "reference_before": face.id_sim_before,
        "reference_after": face.id_sim_after, "guidance": face.guidance,
    }  # fmt: skip
