"""What became of every face that was found."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

from .detection.selection import Selection
from .types import FaceReport, Faces, RestoreOptions


@dataclass(frozen=True)
class Scores:
    """Cosine similarities of every crop, None where not measured."""

    to_input: list[float] | None = None
    before: list[float] | None = None
    after: list[float] | None = None
    guidance: Sequence[str] = ()  # of every crop, where guidance was asked for

    def of(self, crop: int) -> tuple[float | None, float | None, float | None]:
        to_input, before, after = (None if s is None else s[crop] for s in (self.to_input, self.before, self.after))
        return to_input, before, after

    def reach(self, least: float) -> list[bool]:
        """For every crop that was scored, whether it is similar enough to the input."""
        return [least <= 0 or score >= least for score in self.to_input or ()]


def _outcome(scores: tuple[float | None, float | None, float | None], options: RestoreOptions) -> tuple:
    """Status, reason, w and scores of a face that went through the network."""
    if options.min_identity > 0 and scores[0] is not None and scores[0] < options.min_identity:
        return ("skipped", f"identity {scores[0]:.2f} is below {options.min_identity:g}", options.w, *scores)
    return ("restored", "", options.w, *scores)


def report_lines(
    found: Sequence[Faces], chosen: Sequence[Selection], scores: Scores, options: RestoreOptions
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
            box = tuple(float(v) for v in face.box.tolist())
            kept, note = None, ""
            if number in places:
                place = places[number]
                outcome = _outcome(scores.of(place), options)
                note = scores.guidance[place] if scores.guidance else ""
                if outcome[0] == "restored":
                    kept = sum(reached[:place]) if reached else place
            else:
                outcome = ("skipped", reasons[number])
            lines.append(FaceReport(image, number, box, float(face.score), *outcome, crop=kept, guidance=note))
    return tuple(lines)
