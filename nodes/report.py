"""The text outputs: one line for every face."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from . import convert

if TYPE_CHECKING:
    from ..idcodeformer.types import FaceReport, RestoreOptions
    from .compare import Comparison
    from .faces import FoundFaces
    from .managed import IDCodeFormerModel
    from .stream import Restored

_MOST_LINES = 400


def restoration(
    done: Restored,
    model: IDCodeFormerModel,
    frames: convert.Frames,
    options: RestoreOptions,
    mask: Tensor | None,
    given: FoundFaces | None,
    upscaler: bool,
) -> str:
    """What Restore Faces did, face by face; also with those that Detect Faces had left out of ``given``."""
    restored = [line for line in done.report if line.status == "restored"]
    head = f"{len(restored)} of {done.found} faces restored in {len(frames)} frames with {model.name}, w "
    lines = [head + (f"{restored[0].w:g}" if restored else "-")]
    scores = [line.id_sim_input for line in restored if line.id_sim_input is not None]
    if scores:
        lines.append(f"identity to the input: mean {sum(scores) / len(scores):.3f}, lowest {min(scores):.3f}")
    if mask is not None and len(frames) and convert.masks_for(mask, frames) is None:
        lines.append("mask: the empty placeholder of Load Image, so the whole picture counts")
    if done.masked:
        lines.append(f"nothing to do in {len(done.masked)} of {len(frames)} frames: the mask is black")
    if options.face_upsample and not upscaler:
        lines.append("face_upsample does nothing: no upscale_model is linked")
    if not done.found and (not len(frames) or len(done.masked) < len(frames)):
        lines.append("no face was found")
    left_out = given.left_out if given is not None else []
    return _joined(
        lines + [_face(line) for line in done.report]
        + [f"frame {frame}: a face left out by Detect Faces, {reason}" for frame, reason in left_out]
    )  # fmt: skip


def _face(line: FaceReport) -> str:
    text = f"frame {line.image}, face {line.face} (score {line.score:.2f}): {line.status}"
    if line.reason:
        text += f", {line.reason}"
    if line.id_sim_input is not None:
        text += f", identity {line.id_sim_input:.3f}"
    if line.id_sim_before is not None and line.id_sim_after is not None:
        text += f", like the reference {line.id_sim_before:.3f} before, {line.id_sim_after:.3f} after"
    return text


def comparison(result: Comparison, threshold: float) -> str:
    """What Identity Score measured, pair by pair."""
    lines = [result.verdict(threshold), f"recogniser {result.recogniser}, threshold {threshold:g}"]
    for pair in result.pairs:
        score = "no score" if pair.score is None else f"{pair.score:+.3f}"
        lines.append(f"{pair.title}: {score}")
    return _joined(lines + list(result.notes))


def _joined(lines: list[Any]) -> str:
    if len(lines) > _MOST_LINES:
        lines = lines[:_MOST_LINES] + [f"... and {len(lines) - _MOST_LINES} more lines"]
    return "\n".join(lines)
