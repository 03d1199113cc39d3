"""Who is who: the faces of candidate frames against those of reference pictures."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Sequence

import torch
from torch import Tensor

from ..idcodeformer.errors import BadOption
from ..idcodeformer.types import Embeddings, Faces
from .draw import Pair

if TYPE_CHECKING:
    from ..idcodeformer.identity.people import People
    from ..idcodeformer.identity.recogniser import IdentityRecogniser
    from .convert import Frames

_CROP_SIDE = 192  # px, of the chart
HOW = ("auto", "frame_by_frame", "one_person")


@dataclass(frozen=True, eq=False)
class Comparison:
    """All pairs, in the order of the candidate frames; a pair without a score says in its title what is missing."""

    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]
    recogniser: str

    @property
    def scores(self) -> list[float]:
        return [pair.score for pair in self.pairs if pair.score is not None]

    @property
    def mean(self) -> float:
        return sum(self.scores) / len(self.scores) if self.scores else 0.0

    @property
    def lowest(self) -> float:
        return min(self.scores, default=0.0)

    def same_person(self, threshold: float) -> bool:
        """Every frame has a score, and each reaches the threshold. A frame without a face proves nothing."""
        return bool(self.pairs) and all(p.score is not None and p.score >= threshold for p in self.pairs)

    def verdict(self, threshold: float) -> str:
        if not self.scores:
            return "No score: " + (self.pairs[0].title if self.pairs else "no frames")
        word = "same person" if self.same_person(threshold) else "NOT the same person"
        return f"{word}: mean {self.mean:.3f}, lowest {self.lowest:.3f} of {len(self.scores)}"


@dataclass(frozen=True, eq=False)
class Side:
    """Frames with their faces."""

    frames: Frames
    faces: tuple[Faces, ...]
    embeddings: dict[int, Embeddings] = field(default_factory=dict)  # of the frames that were embedded before

    def embed(self, frame: int, recogniser: IdentityRecogniser) -> Embeddings:
        """Of all faces of one frame; made once."""
        if frame not in self.embeddings:
            self.embeddings[frame] = recogniser.embed_faces(self.frames.part(frame, frame + 1), [self.faces[frame]])
        return self.embeddings[frame]

    def crop(self, frame: int, face: int) -> Tensor:
        """[3,192,192] of one face."""
        from ..idcodeformer.geometry.alignment import align

        return align(self.frames.part(frame, frame + 1), [(self.faces[frame][face],)], _CROP_SIDE).pixels[0].cpu()

    def largest(self) -> dict[int, int]:
        """The largest face of each frame that shows one: frame -> its number."""
        shown = {frame: here for frame, here in enumerate(self.faces) if here}
        return {frame: max(range(len(here)), key=lambda n: here[n].area) for frame, here in shown.items()}


def compare(reference: Side, candidate: Side, recogniser: IdentityRecogniser, how: str) -> Comparison:
    """``how``: "frame_by_frame" matches the faces of reference i (or of the only one) and candidate i one to one;
    "one_person" compares the person of all reference photos with the face of each frame that is most like them; "auto"
    is the first where the numbers of frames allow it. Raises BadOption.
    """
    count, frames = len(reference.frames), len(candidate.frames)
    fits = count in (1, frames)
    if how == "frame_by_frame" and not fits:
        raise BadOption(f"{count} reference and {frames} candidate frames do not pair; set 'compare' to one_person.")
    if not any(reference.faces):
        return Comparison((Pair("no face in the reference", None, None, None),), (), recogniser.name)
    if how == "one_person" or not fits:
        return _one_person(reference, candidate, recogniser)
    return _frame_by_frame(reference, candidate, recogniser)


def _frame_by_frame(reference: Side, candidate: Side, recogniser: IdentityRecogniser) -> Comparison:
    from ..idcodeformer.identity.recogniser import match

    pairs: list[Pair] = []
    notes: list[str] = []
    for frame in range(len(candidate.frames)):
        source = frame if len(reference.frames) > 1 else 0
        theirs, ours = reference.faces[source], candidate.faces[frame]
        if not theirs or not ours:
            where = "the reference" if not theirs else "the candidate"
            pairs.append(_lone(f"frame {frame}: no face in {where}", reference, candidate, source, frame))
            continue
        for i, j, score in match(reference.embed(source, recogniser), candidate.embed(frame, recogniser)):
            title = f"frame {frame}" + (f", face {j} (reference face {i})" if len(theirs) + len(ours) > 2 else "")
            pairs.append(Pair(title, reference.crop(source, i), candidate.crop(frame, j), score))
        if len(theirs) != len(ours):
            notes.append(f"frame {frame}: {len(theirs)} faces in the reference, {len(ours)} in the candidate")
    return Comparison(tuple(pairs), tuple(notes), recogniser.name)


def _one_person(reference: Side, candidate: Side, recogniser: IdentityRecogniser) -> Comparison:
    from ..idcodeformer.identity.recogniser import cosine, mean_identity

    largest = reference.largest()
    vectors = [reference.embed(n, recogniser).vectors[i : i + 1] for n, i in largest.items()]
    person = mean_identity(Embeddings(torch.cat(vectors), recogniser.name))
    picture = reference.crop(*next(iter(largest.items())))
    missing = [n for n in range(len(reference.frames)) if n not in largest]
    notes = [f"reference {n}: no face" for n in missing]
    pairs: list[Pair] = []
    for frame, here in enumerate(candidate.faces):
        if not here:
            pairs.append(Pair(f"frame {frame}: no face in the candidate", picture, None, None))
            continue
        scores = cosine(candidate.embed(frame, recogniser), person)[:, 0].tolist()
        best = max(range(len(here)), key=lambda n: scores[n])
        title = f"frame {frame}" + (f", face {best} of {len(here)}" if len(here) > 1 else "")
        pairs.append(Pair(title, picture, candidate.crop(frame, best), scores[best]))
    return Comparison(tuple(pairs), tuple(notes), recogniser.name)


def with_people(
    people: People, pictures: Sequence[Tensor | None], candidate: Side, recogniser: IdentityRecogniser
) -> Comparison:
    """The faces of every candidate frame with the people, one to one, at the largest sum of similarities.

    ``pictures``: [3,S,S] of each person, None where none is at hand.
    """
    from ..idcodeformer.identity.recogniser import match

    pairs: list[Pair] = []
    for frame, here in enumerate(candidate.faces):
        if not here:
            pairs.append(Pair(f"frame {frame}: no face in the candidate", pictures[0], None, None))
            continue
        for person, face, score in match(people.identities, candidate.embed(frame, recogniser)):
            title = f"frame {frame}" + (f", face {face} of {len(here)}" if len(here) > 1 else "")
            title += f": {people.persons[person].name}"
            pairs.append(Pair(title, pictures[person], candidate.crop(frame, face), score, "no picture"))
    return Comparison(tuple(pairs), (), recogniser.name)


def _lone(title: str, reference: Side, candidate: Side, source: int, frame: int) -> Pair:
    there = reference.crop(source, 0) if reference.faces[source] else None
    here = candidate.crop(frame, 0) if candidate.faces[frame] else None
    return Pair(title, there, here, None)
