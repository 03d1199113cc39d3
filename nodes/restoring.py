"""What Restore Faces asks of the core: the pipeline with the model's parts, over all frames."""
from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Iterator, Sequence

import torch
from torch import Tensor

from ..idcodeformer.errors import BadImage, BadOption, OutOfMemory
from ..idcodeformer.geometry.resizing import resize
from ..idcodeformer.runtime.validation import SMALLEST_CROP
from ..idcodeformer.types import DetectOptions, Face, Faces, RestoreOptions
from . import convert, faces, host, stream, video
from .folders import fingerprint_of
from .managed import BUILT_IN_DETECTOR, IDCodeFormerModel, Kept, Part, load_together
from .people import LinkedPeople
from .preview import PreviewingRestorer, StagedProgress
from .upscale import upscaler_of

if TYPE_CHECKING:
    from ..idcodeformer.guidance.options import GuidanceOptions
    from ..idcodeformer.identity.recogniser import IdentityRecogniser

AUTOMATIC, SQUARE = "automatic", "whole square"  # of paste_classes
_FACES_AT_ONCE = 4  # what memory is asked for; the core then takes as many as fit


@dataclass(frozen=True, eq=False)
class Request:
    """All inputs of one execution beside the model."""

    frames: convert.Frames
    options: RestoreOptions
    paste_classes: str
    given: faces.FoundFaces | None
    mask: Tensor | None
    reference: Tensor | None
    people: LinkedPeople | None
    guidance: GuidanceOptions
    upscale_model: Any = None
    aligned: bool = False
    detector: str | None = None
    confidence: float = 0.8
    clip: bool = False  # the frames are one clip
    fidelities: Sequence[float] = ()  # one for each face, in place of that of ``options``


def restored(model: IDCodeFormerModel, asked: Request, kept: Kept) -> stream.Restored:
    """Every frame of the request. Raises BadImage, BadOption, OutOfMemory."""
    _check(model, asked)
    with _giving_up(model), host.work(), upscaler_of(asked.upscale_model) as upscaler:
        if asked.aligned:
            asked = replace(asked, frames=_resized(asked.frames, model.config.img_size), given=None,
                            options=replace(asked.options, upscale=1.0, face_upsample=False))  # fmt: skip
        return _run(model, asked, kept, upscaler)


def _check(model: IDCodeFormerModel, asked: Request) -> None:
    """Raises BadOption in words of the graph; the host cannot tell before, since the model is a link."""
    options = asked.options
    for wanted, here, remedy in (
        ("min_identity", options.min_identity > 0, "set min_identity to 0"),
        ("reference", asked.reference is not None, "unlink reference"),
        ("identity_target", options.identity_target > 0 and asked.people is None, "set identity_target to 0"),
    ):
        if here and model.recogniser is None:
            raise BadOption(
                f"'{wanted}' needs a recogniser, and Load ID-CodeFormer has 'none'; choose one there, or {remedy}."
            )
    if asked.reference is not None and asked.people is not None:
        raise BadOption("Both 'reference' and 'person' are linked; unlink one of them.")
    if asked.clip and (asked.reference is not None or asked.people is not None or asked.aligned):
        raise BadOption("frames = video goes without reference, person and aligned; set it to pictures for these.")
    if asked.fidelities:
        _check_fidelities(asked)
    if asked.aligned and asked.given is not None:
        raise BadOption("'aligned' takes every frame for one face; unlink faces, or switch aligned off.")


def _check_fidelities(asked: Request) -> None:
    if asked.given is None and not asked.aligned:
        raise BadOption("'fidelities' counts in the order of Detect Faces; link 'faces', or clear fidelities.")
    if asked.clip:
        raise BadOption("frames = video goes without fidelities; clear them, or set it to pictures.")
    if asked.options.identity_target > 0:
        raise BadOption("'identity_target' chooses the fidelity of each face; set it to 0, or clear fidelities.")


@contextmanager
def _giving_up(model: IDCodeFormerModel) -> Iterator[None]:
    """Drop what is held where memory runs out, so that the next try has more."""
    try:
        yield
    except (OutOfMemory, host.out_of_memory()):
        model.held.clear()
        raise


def _run(model: IDCodeFormerModel, asked: Request, kept: Kept, upscaler: Any) -> stream.Restored:
    from .holding import HoldingPipeline, HoldingRecogniser

    model.held.make_room(host.compute_device())
    frames, people = asked.frames, asked.people
    found = _template(frames) if asked.aligned else faces.faces_of(asked.given, frames)
    each = faces.each_fidelity(asked.fidelities, found or ())
    masks = convert.masks_for(asked.mask, frames)
    name = asked.detector or BUILT_IN_DETECTOR
    detector = None
    if found is None or asked.reference is not None:
        detector = model.detector() if name == BUILT_IN_DETECTOR else kept.detector(name)
    square = asked.paste_classes == SQUARE or asked.aligned
    parser = None if square else model.parser()
    guide = None if people is None else people.part
    load_together([model.restorer, detector, model.recogniser, parser, guide], model.memory(_FACES_AT_ONCE))
    progress = StagedProgress(host.Progress(100))
    finder, judge, pasted, guide = (_ready(part) for part in (detector, model.recogniser, parser, guide))
    if asked.clip:
        options = DetectOptions(asked.confidence)
        tools = (finder, judge, pasted)
        return video.restore_frames(model, tools, frames, asked.options, options, found, masks, upscaler, progress)
    known, judge, guide = _references(asked, finder, judge, guide)
    if judge is not None and host.compute_device().type == "cpu":  # on a card embedding costs less than a digest
        judge = HoldingRecogniser(judge, model.held)
    restorer = PreviewingRestorer(model.restorer, progress)
    pipeline = HoldingPipeline(model.held, fingerprint_of("detector", name), restorer, finder, judge, pasted, guide)
    wanted = DetectOptions(asked.confidence) if found is None else None
    guidance = asked.guidance if people is not None and asked.guidance.steps else None
    others = None if asked.given is None else asked.given.others
    return stream.restore(
        pipeline, frames, asked.options, found, masks, progress, asked.aligned, others, each, detect_options=wanted,
        guidance=guidance, upscaler=upscaler, **known,
    )  # fmt: skip


def _ready(part: Part | None) -> Any:
    return None if part is None else part.ready()


def _references(
    asked: Request, finder: Any, judge: IdentityRecogniser | None, guide: IdentityRecogniser | None
) -> tuple[dict[str, Any], IdentityRecogniser | None, IdentityRecogniser | None]:
    """What the pipeline is told of the people, the recogniser that scores, and the one that guides where it is another.

    Where people came out of a file that another recogniser than the model's has made, that one scores as well. Every
    face is compared with a person alone; of several each face is the nearest, one person to one face.
    """
    if asked.reference is not None:
        photos = convert.frames_of(asked.reference, "reference")
        assert judge is not None
        return {"references": faces.person_in(photos, finder, judge)}, judge, None
    if asked.people is None or guide is None:
        return {}, judge, None
    theirs = asked.people.people
    judged = None if judge is None else asked.people.by(judge)
    galleries = [theirs] if judged is theirs or judged is None else [theirs, judged]
    if judged is theirs or judged is None:
        judge, guide = judge if judged is theirs else guide, None
    if len(theirs) == 1:
        return {"references": [each.identities for each in galleries]}, judge, guide
    return {"people": galleries}, judge, guide


def _resized(frames: convert.Frames, side: int) -> convert.Frames:
    """Aligned faces in the size of the network. Raises BadImage for what is too small to be a face."""
    high, wide = frames.size
    if min(high, wide) < SMALLEST_CROP:
        least = f"{SMALLEST_CROP}x{SMALLEST_CROP}"
        raise BadImage(f"The image has {wide}x{high} px; an aligned face has at least {least}.")
    out = torch.empty(len(frames), side, side, 3 + frames.extras, device=host.output_device())
    for start, stop in frames.chunks():
        planes = torch.cat([frames.part(start, stop), frames.extra(start, stop).movedim(-1, 1)], 1)
        small = resize(planes, (side, side))
        out[start:stop].copy_(small.movedim(1, -1))
    return convert.Frames(out, frames.name)


def _template(frames: convert.Frames) -> Sequence[Faces]:
    """One face for every frame, whose points are where alignment puts them."""
    from ..idcodeformer.geometry.templates import ffhq_template

    side = frames.size[0]
    points = torch.from_numpy(ffhq_template(side)).float()
    face = Face(torch.tensor([0.0, 0.0, side - 1.0, side - 1.0]), 1.0, points)
    return ((face,),) * len(frames)
