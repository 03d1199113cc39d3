"""Restoring the frames of a clip part by part: one pipeline call each, results written into outputs made beforehand."""
from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Iterator, Sequence

import torch
from torch import Tensor

from ..idcodeformer.types import Crops, FaceReport, Faces, Restoration, RestoreOptions
from . import convert

if TYPE_CHECKING:
    from .holding import HoldingPipeline
    from .preview import StagedProgress


@dataclass(eq=False)
class Restored:
    """What Restore Faces hands out, and what its report is made of."""

    image: Tensor  # IMAGE [B,H',W',C]
    mask: Tensor  # MASK [B,H',W']
    before: list[Tensor] = field(default_factory=list)  # crops [n,3,S,S] of each part
    after: list[Tensor] = field(default_factory=list)
    report: list[FaceReport] = field(default_factory=list)
    found: int = 0  # faces, restored or not
    masked: list[int] = field(default_factory=list)  # frames whose mask is black


def restore(
    pipeline: HoldingPipeline,
    frames: convert.Frames,
    options: RestoreOptions,
    found: Sequence[Faces] | None,
    masks: convert.Masks | None,
    progress: StagedProgress,
    whole: bool = False,
    others: Sequence[Faces] | None = None,
    fidelities: Sequence[Sequence[float]] | None = None,
    **asked: Any,
) -> Restored:
    """Every frame through the pipeline. Where a mask is black nothing is sought and nothing computed.

    ``whole``: each frame is the crop of one face, and is replaced to its edges. ``others``: faces of each frame that
    were found and not chosen; they stay as they are. ``fidelities``: one for each of ``found``. ``asked`` goes to the
    pipeline.
    """
    from ..idcodeformer.compositing.plan import output_size

    size = output_size(*frames.size, options.upscale)
    image = convert.Output(frames, size)
    done = Restored(image.image, convert.empty_mask(len(frames), size))
    for start, stop in frames.chunks(options.upscale):
        mask = None if masks is None else masks.part(start, stop)
        for a, b, black in _runs(mask, stop - start):
            progress.part(start + a, start + b, len(frames))
            here: Sequence[Faces] | None = [()] * (b - a) if black else None
            if here is None and found is not None:
                here = found[start + a : start + b]
            limits = None if mask is None else list(mask[a:b])
            pipeline.frames = [] if black else frames.digests(start + a, start + b)
            result = pipeline(
                frames.part(start + a, start + b), options, faces=here, masks=limits, progress=progress,
                others=None if others is None else others[start + a : start + b],
                fidelities=None if fidelities is None or black else fidelities[start + a : start + b], **asked,
            )  # fmt: skip
            _take(done, image, start + a, result, options, limits, whole)
            del result  # or its pictures would lie beside those of the next part
            if black:
                done.masked += range(start + a, start + b)
                done.found += 0 if found is None else sum(map(len, found[start + a : start + b]))
    return done


def _runs(mask: Tensor | None, count: int) -> Iterator[tuple[int, int, bool]]:
    """(start, stop, black) of neighbouring frames whose masks are alike in being wholly black or not."""
    black = [False] * count if mask is None else (~mask.flatten(1).any(1)).tolist()
    start = 0
    for number in range(1, count + 1):
        if number == count or black[number] != black[start]:
            yield start, number, black[start]
            start = number


def _take(
    done: Restored,
    image: convert.Output,
    start: int,
    result: Restoration,
    options: RestoreOptions,
    limits: Any,
    whole: bool,
) -> None:
    pasted = _edge_to_edge(result, options, limits) if whole else (result.images, result.masks)
    for number, (picture, share) in enumerate(zip(*pasted), start):
        image.write(number, picture)
        done.mask[number].copy_(share[0]).clamp_(0, 1)
    done.found += sum(map(len, result.faces))
    reasons = _untouched(result.crops_out, options, limits)
    kept = [n for n, reason in enumerate(reasons) if not reason]
    first = sum(map(len, done.after))
    for line in result.report:
        line = replace(line, image=line.image + start)
        if line.crop is not None and reasons[line.crop]:
            line = replace(line, status="skipped", reason=reasons[line.crop], crop=None)
        elif line.crop is not None:
            line = replace(line, crop=first + kept.index(line.crop))
        done.report.append(line)
    if kept:
        done.before.append(result.crops_in.only(kept).pixels)
        done.after.append(result.crops_out.only(kept).pixels)


def _edge_to_edge(result: Restoration, options: RestoreOptions, limits: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Pictures and shares where every picture is a crop: the restored crop takes its place, as far as asked."""
    images, shares = list(result.images), [torch.zeros_like(share) for share in result.masks]
    crops = zip(result.crops_out.image_index.tolist(), result.crops_in.pixels, result.crops_out.pixels)
    for number, before, after in crops:
        share = options.strength * (torch.ones_like(shares[number]) if limits is None else limits[number])
        images[number], shares[number] = before + share.to(before.device) * (after - before), share
    return images, shares


def _untouched(crops: Crops, options: RestoreOptions, limits: Any) -> list[str]:
    """For every crop why no pixel of it can show in the picture; "" where some can."""
    if options.strength == 0:
        return ["visibility is 0"] * len(crops)
    if limits is None or not len(crops):
        return [""] * len(crops)
    from ..idcodeformer.geometry.warping import warp

    seen = warp(limits, crops.matrices, crops.image_index, crops.size, fill=0.0)
    return ["" if inside else "outside the mask" for inside in seen.flatten(1).amax(1).gt(0).tolist()]
