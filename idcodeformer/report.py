"""What became of every face that was found."""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Sequence

from .detection.selection import Selection
from .guidance.restoring import RestoredCrops
from .types import Face, FaceReport, Faces, RestoreOptions


@dataclass(frozen=True)
class Scores:
    """Cosine similarities of every crop, None where not measured."""

    to_input: list[float] | None = None
    before: list[float | None] | None = None
    after: list[float | None] | None = None
    done: RestoredCrops | None = None  # what was done to every crop
    judge: str = ""  # recogniser that measured ``before`` and ``after``
    guide: str = ""  # recogniser that guides
    besides: Sequence[str] = ()  # of every crop, what was done besides restoring

    def of(self, crop: int) -> tuple[float | None, float | None, float | None]:
        to_input, before, after = (None if s is None else s[crop] for s in (self.to_input, self.before, self.after))
        return to_input, before, after

    def reach(self, least: float) -> list[bool]:
        """For every crop that was scored, whether it is similar enough to the input."""
        return [least <= 0 or score >= least for score in self.to_input or ()]


def face_line(place: tuple[int, int], face: Face, crop: int, scores: Scores, options: RestoreOptions) -> FaceReport:
    """The line of a face that went through the network as crop number ``crop``; ``place``: its image and number."""
    to_input, before, after = scores.of(crop)
    box = tuple(float(v) for v in face.box.tolist())
    line = FaceReport(*place, box, float(face.score), "restored", "", options.w, to_input, before, after)
    line = replace(line, judged_by=scores.judge if after is not None else "")
    if (done := scores.done) is not None:
        who = done.named[crop]
        line = replace(
            line,
            reason=done.notes[crop],
            w=done.w[crop],
            guidance=done.guidance[crop],
            person="" if who is None else who.name,
            guided_by=scores.guide if done.guided[crop] else "",
        )
    if options.min_identity > 0 and to_input is not None and to_input < options.min_identity:
        reason = f"identity {to_input:.2f} is below {options.min_identity:g}"
        line = replace(line, status="skipped", reason=reason, guided_by="")
    return line


def report_lines(
    found: Sequence[Faces],
    chosen: Sequence[Selection],
    scores: Scores,
    options: RestoreOptions,
) -> tuple[FaceReport, ...]:
    """One line for every face found, by image and by its position among the faces found.

    ``scores`` has one value per chosen face, image by image in the order of the selections.
    """
    lines: list[FaceReport] = []
    reached = scores.reach(options.min_identity)
    crop = 0
    for image, (here, selection) in enumerate(zip(found, chosen)):
        places = {face: crop + i for i, face in enumerate(selection.indices)}
        reasons = dict(selection.dropped)
        crop += len(places)
        for number, face in enumerate(here):
            if number not in places:
                box = tuple(float(v) for v in face.box.tolist())
                lines.append(FaceReport(image, number, box, float(face.score), "skipped", reasons[number]))
                continue
            place = places[number]
            line = face_line((image, number), face, place, scores, options)
            if line.status == "restored":
                line = replace(line, crop=sum(reached[:place]) if reached else place)
                if scores.besides and scores.besides[place]:
                    line = replace(line, reason="; ".join(filter(None, (scores.besides[place], line.reason))))
            lines.append(line)
    return tuple(lines)
