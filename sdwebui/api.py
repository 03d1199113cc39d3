"""Routes of our own beside the host's: /id-codeformer/v1/restore, /score and /models.

Imported when the host has started, as it needs FastAPI and pydantic (1 or 2).
"""
from __future__ import annotations

from secrets import compare_digest
from typing import Any, Callable

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.routing import APIRoute
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from pydantic import BaseModel, Field

from . import api_work, host
from .models import Models

MOST_BYTES = 64 << 20  # of a request
ROOT = "/id-codeformer/v1"
_BASE64 = "Bytes of a picture file in base64 (a data URL works too; an http URL does not)"


class RestoreRequest(BaseModel):
    """A picture, and what is wanted of its faces."""

    image: str = Field(..., title="Image", description=_BASE64)
    reference: list[str] = Field([], title="Reference photos", description=f"Photos of the person. {_BASE64}")
    model: str | None = Field(None, title="Model", description="Of /models; as in the settings where left out")
    detector: str | None = Field(None, title="Detector")
    recogniser: str | None = Field(None, title="Recogniser", description="none: no scores")
    fidelity: float = Field(0.8, ge=0, le=1, description="1 stays closest to the input, 0 is cleanest")
    visibility: float = Field(1.0, ge=0, le=1, description="Share of the restored face in the result")
    minimum_identity: float = Field(0.0, ge=0, le=1, description="A face less like its input is left as it was")
    gray: str = Field("auto", description="auto, force or off")
    faces: str = Field("all", description="all, largest, centre or reference (most like the photos)")
    upscale: float = Field(1.0, ge=0.25, le=4, description="Output px per input px")
    guidance_steps: int = Field(0, ge=0, le=200, description="Brings faces nearer to the reference; 15 is usual")
    guidance_strength: float = Field(1.0, ge=0, le=1, description="Share of the way to two photos of one person")
    large_faces: str = Field("auto", description="Faces larger than the network: auto, restore, keep or skip")
    grain: str = Field("auto", description="Grain measured around the face is put back: auto (monochrome), on or off")
    colour: str = Field("low_band", description="low_band: the input's colours; adain: the latent match alone; off")


class FaceLine(BaseModel):
    """One face that was found. Identities are cosines in [-1,1], null where not measured."""

    face: int
    box: list[float] = Field(..., description="x0, y0, x1, y1 in px of the input")
    detection: float = Field(..., description="Probability of the detector")
    status: str = Field(..., description="restored or skipped")
    reason: str
    identity: float | None = Field(None, description="Restored face against the input face")
    reference_before: float | None = Field(None, description="Input face against the reference")
    reference_after: float | None = Field(None, description="Restored face against the reference")
    guidance: str = Field("", description="What guidance did, or why it did nothing")


class RestoreResponse(BaseModel):
    """The result as PNG in base64."""

    image: str
    model: str
    summary: str
    faces: list[FaceLine]


class ScoreRequest(BaseModel):
    """Is the person of the reference photos in the picture?"""

    image: str = Field(..., title="Image", description=_BASE64)
    reference: list[str] = Field(..., title="Reference photos", description=f"Largest face of each. {_BASE64}")
    detector: str | None = Field(None, title="Detector")
    recogniser: str | None = Field(None, title="Recogniser")


class ScoredFace(BaseModel):
    """One face and its cosine to the reference, in [-1,1]."""

    box: list[float]
    detection: float
    identity: float


class ScoreResponse(BaseModel):
    """All faces of the picture, by position in the detector's list."""

    recogniser: str
    best: float | None = Field(None, description="The highest identity; null where no face was found")
    faces: list[ScoredFace]


class _LimitedRoute(APIRoute):
    """Refuses a body that is too large while it arrives, before anything of it is parsed."""

    def get_route_handler(self) -> Callable:
        handler = super().get_route_handler()

        async def limited(request: Request) -> Any:
            if int(request.headers.get("content-length") or 0) > MOST_BYTES:
                raise _too_large()
            arrived = 0

            async def receive() -> dict[str, Any]:
                nonlocal arrived
                message = await request.receive()
                arrived += len(message.get("body", b""))
                if arrived > MOST_BYTES:
                    raise _too_large()
                return message

            return await handler(Request(request.scope, receive))

        return limited


def _too_large() -> HTTPException:
    return HTTPException(413, f"The request is larger than {MOST_BYTES >> 20} MB; send smaller pictures.")


def register(app: FastAPI, models: Models) -> None:
    """Add the routes where the host was started with its API, behind the host's own user names and passwords."""
    if not host.argument("api", True) and not host.argument("nowebui", False):
        return
    guard = [Depends(_password_check(users))] if (users := host.api_users()) else []
    router = APIRouter(prefix=ROOT, route_class=_LimitedRoute, dependencies=guard, tags=["ID-CodeFormer"])

    @router.get("/models", response_model=dict[str, list[str]], summary="Names for model, detector and recogniser")
    def list_models() -> Any:
        return api_work.list_models()

    @router.post("/restore", response_model=RestoreResponse, summary="Restore the faces of a picture")
    def restore(request: RestoreRequest) -> Any:
        return _answer(api_work.restore, models, request)

    @router.post("/score", response_model=ScoreResponse, summary="Compare the faces of a picture with a person")
    def score(request: ScoreRequest) -> Any:
        return _answer(api_work.score, models, request)

    for prefix in dict.fromkeys(["", str(host.option("subpath", "")).rstrip("/")]):  # SD.Next behind a proxy
        app.include_router(router, prefix=prefix)


def _answer(work: Callable, models: Models, request: BaseModel) -> Any:
    """The result, or the core's sentence with a status of HTTP."""
    from .core import BadImage, BadOption, IDCodeFormerError, MissingWeights, OutOfMemory
    from .job import Interrupted

    try:
        return work(models, request)
    except (BadImage, BadOption) as error:
        raise HTTPException(422, str(error)) from error
    except MissingWeights as error:
        raise HTTPException(404, str(error)) from error
    except (OutOfMemory, Interrupted) as error:
        raise HTTPException(503, str(error)) from error
    except IDCodeFormerError as error:
        raise HTTPException(500, str(error)) from error


def _password_check(users: dict[str, str]) -> Callable:
    def check(given: HTTPBasicCredentials = Depends(HTTPBasic())) -> None:  # noqa: B008
        wanted = users.get(given.username)
        if wanted is None or not compare_digest(given.password.encode(), wanted.encode()):
            raise HTTPException(401, "Incorrect user name or password.", headers={"WWW-Authenticate": "Basic"})

    return check
