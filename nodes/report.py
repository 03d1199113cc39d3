"""The text outputs: one line for every face."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import convert

if TYPE_CHECKING:
    from ..idcodeformer.types import FaceReport
    from .compare import Comparison
    from .managed import IDCodeFormerModel
    from .restoring import Request
    from .stream import Restored

_MOST_LINES = 400


def restoration(done: Restored, model: IDCodeFormerModel, asked: Request) -> str:
    """What Restore Faces did, face by face; also with those that Detect Faces had left out."""
    frames, options, given = asked.frames, asked.options, asked.given
    restored = [line for line in done.report if line.status == "restored"]
    head = f"{len(restored)} of {done.found} faces restored in {len(frames)} frames with {model.name}, w "
    ws = sorted({round(line.w, 3) for line in restored if line.w is not None})
    lines = [head + (" to ".join(f"{w:g}" for w in dict.fromkeys((ws[0], ws[-1]))) if ws else "-")]
    scores = [line.id_sim_input for line in restored if line.id_sim_input is not None]
    if scores:
        lines.append(f"identity to the input: mean {sum(scores) / len(scores):.3f}, lowest {min(scores):.3f}")
    if asked.mask is not None and len(frames) and convert.masks_for(asked.mask, frames) is None:
        lines.append("mask: the empty placeholder of Load Image, so the whole picture counts")
    if done.masked:
        lines.append(f"nothing to do in {len(done.masked)} of {len(frames)} frames: the mask is black")
    if options.face_upsample and asked.upscale_model is None:
        lines.append("face_upsample does nothing: no upscale_model is linked")
    if asked.aligned and (options.upscale != 1 or options.face_upsample):
        lines.append("aligned: upscale_factor and face_upsample do nothing, the network's size comes out")
    if asked.people is not None:
        lines.append(_who_judges(model, asked))
    if not done.found and (not len(frames) or len(done.masked) < len(frames)):
        lines.append("no face was found")
    left_out = given.left_out if given is not None else []
    return _joined(
        lines + [_face(line, len(ws) > 1 or options.identity_target > 0) for line in done.report]
        + [f"frame {frame}: a face left out by Detect Faces, {reason}" for frame, reason in left_out]
    )  # fmt: skip


def _who_judges(model: IDCodeFormerModel, asked: Request) -> str:
    """Which recogniser guided and which one the scores are by: one that guided flatters what it guided."""
    assert asked.people is not None
    guide, judge = asked.people.people.recogniser, model.judge_of(asked.people)
    what = f"guided by {guide} towards {', '.join(asked.people.names)}" if asked.guidance.steps else "not guided"
    return f"{what}, scores by {judge}" + (" itself" if judge == guide and asked.guidance.steps else "")


def _face(line: FaceReport, tells_w: bool) -> str:
    text = f"frame {line.image}, face {line.face} (score {line.score:.2f}): {line.status}"
    if line.reason:
        text += f", {line.reason}"
    if line.person:
        text += f", {line.person}"
    if line.w is not None and tells_w:
        text += f", w {round(line.w, 3):g}"
    if line.id_sim_input is not None:
        text += f", identity {line.id_sim_input:.3f}"
    if line.id_sim_before is not None and line.id_sim_after is not None:
        text += f", like the reference {line.id_sim_before:.3f} before, {line.id_sim_after:.3f} after"
    if line.guidance:
        text += f", {line.guidance}"
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
