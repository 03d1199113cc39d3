"""FACES, the faces of every frame of an image, and how they are found and chosen."""
from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Callable, Sequence

from torch import Tensor

from ..idcodeformer.errors import BadImage, BadOption
from ..idcodeformer.types import DetectOptions, Detector, Embeddings, Face, Faces

if TYPE_CHECKING:
    from ..idcodeformer.identity.recogniser import IdentityRecogniser
    from .convert import Frames, Masks

FRAMES_AT_ONCE = 8  # between two steps of the progress bar
_MOST_LIKE = "reference"


@dataclass(frozen=True, eq=False)
class FoundFaces:
    """The FACES of the graph: for each frame the chosen faces in order, and those left out, each with the reason."""

    faces: tuple[Faces, ...]
    dropped: tuple[tuple[tuple[Face, str], ...], ...]
    size: tuple[int, int]  # (height, width) of the frames, px

    @property
    def left_out(self) -> list[tuple[int, str]]:
        """(frame, reason) of every face that was found and not chosen."""
        return [(frame, reason) for frame, here in enumerate(self.dropped) for _, reason in here]

    @property
    def others(self) -> list[Faces]:
        """The faces of each frame that are not chosen."""
        return [tuple(face for face, _ in here) for here in self.dropped]

    @property
    def count(self) -> int:
        return sum(map(len, self.faces))


def faces_of(faces: Any, frames: Frames, name: str = "faces") -> tuple[Faces, ...] | None:
    """The faces of each frame, checked to belong to this image; None where nothing is linked. Raises BadOption."""
    if faces is None:
        return None
    if not isinstance(faces, FoundFaces):
        raise BadOption(f"'{name}' is a {type(faces).__name__}; link the faces output of Detect Faces.")
    here, there = (len(frames), *frames.size), (len(faces.faces), *faces.size)
    if here != there:
        text = "{} frames of {}x{} px"
        raise BadOption(
            f"'{name}' were found in {text.format(there[0], there[2], there[1])}, but the image has "
            f"{text.format(here[0], here[2], here[1])}; link the same image to Detect Faces and to this node."
        )
    return faces.faces


def parse_indices(text: str) -> tuple[int, ...]:
    """(0, 2, 3, 4) for "0, 2-4". Raises BadOption."""
    numbers: list[int] = []
    for part in filter(None, re.split(r"[,;\s]+", text.strip())):
        found = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if last < first:
            raise BadOption(f"indices is '{text}'; write numbers from 0 as in '0, 2' or '0-3'.")
        numbers += range(first, last + 1)
    return tuple(dict.fromkeys(numbers))


def fidelities_of(given: Any) -> list[float]:
    """(0.3, 0.8) for "0.3, 0.8", or for a list of numbers; empty for none. Raises BadOption."""
    if given is None or isinstance(given, str):
        parts: list[Any] = re.split(r"[,;\s]+", (given or "").strip())
    else:
        parts = given.tolist() if isinstance(given, Tensor) else given
        parts = list(parts) if isinstance(parts, (list, tuple)) else [parts]
    try:
        values = [float(part) for part in parts if part != ""]
    except (TypeError, ValueError):
        raise BadOption(f"fidelities is '{given}'; write numbers from 0 to 1 as in '0.3, 0.8'.") from None
    wrong = [value for value in values if not 0 <= value <= 1]
    if wrong:
        raise BadOption(f"fidelities holds {wrong[0]:g}; each must lie between 0 and 1.")
    return values


def each_fidelity(values: Sequence[float], found: Sequence[Faces]) -> list[list[float]] | None:
    """One for every face of every frame; None where none are given or there is no face. Where every frame shows as many
    faces as there are values, they count in each frame. Raises BadOption for another number."""
    counts = [len(here) for here in found]
    if not values or not any(counts):
        return None
    if len(values) != sum(counts):
        if set(counts) != {len(values)}:
            raise BadOption(f"fidelities has {len(values)} values for {sum(counts)} faces; write one for each face.")
        return [list(values) for _ in counts]
    rest = iter(values)
    return [[next(rest) for _ in here] for here in found]


def options_of(
    confidence: float, min_eye_distance: float, max_faces: int, order: str, keep: str, indices: str
) -> DetectOptions:
    """The core's options; keeping the face most like the reference is keeping the first in that order."""
    if keep == _MOST_LIKE:
        order, keep, chosen = "reference", "indices", (0,)
    else:
        chosen = parse_indices(indices)
    return DetectOptions(confidence, min_eye_distance, max_faces, order, keep, chosen)  # type: ignore[arg-type]


def find(
    frames: Frames,
    detector: Detector,
    options: DetectOptions,
    masks: Masks | None = None,
    likeness: Callable[[Sequence[Tensor], Sequence[Faces]], list[list[float]]] | None = None,
    min_similarity: float = -1.0,
    progress: Callable[[int, int], None] | None = None,
) -> FoundFaces:
    """Detect and choose, frame by frame; ``likeness`` gives one cosine per face."""
    from ..idcodeformer.detection import select

    kept: list[Faces] = []
    dropped: list[tuple[tuple[Face, str], ...]] = []
    for start, stop in frames.chunks(most=FRAMES_AT_ONCE):
        images = frames.part(start, stop)
        found = detector(list(images), replace(options, doubtful=True))
        similar = likeness(list(images), found) if likeness else [None] * len(found)
        for number, (faces, scores) in enumerate(zip(found, similar), start):
            mask = None if masks is None else masks.part(number, number + 1)[0]
            unlike = [] if scores is None else [n for n, score in enumerate(scores) if score < min_similarity]
            faces, scores, strangers = _without(faces, scores, unlike)
            choice = select(faces, options, frames.size, mask, scores)
            kept.append(choice.faces)
            left = [(faces[n], reason) for n, reason in choice.dropped]
            if scores is not None and options.keep == "indices":  # the numbers are in the order of likeness
                left = [(faces[n], _unlike(scores[n])) for n, _ in choice.dropped]
            dropped.append((*left, *strangers))
        if progress:
            progress(len(kept), len(frames))
    return FoundFaces(tuple(kept), tuple(dropped), frames.size)


def _without(faces: Faces, scores: list[float] | None, unlike: list[int]):
    if scores is None or not unlike:
        return faces, scores, ()
    strangers = tuple((faces[n], _unlike(scores[n])) for n in unlike)
    rest = [n for n in range(len(faces)) if n not in unlike]
    return tuple(faces[n] for n in rest), [scores[n] for n in rest], strangers


def _unlike(score: float) -> str:
    return f"similarity {score:.2f}"


def person_in(reference: Frames, detector: Detector, recogniser: IdentityRecogniser) -> Embeddings:
    """One embedding [1,D] of the person on the reference photos: the largest face of each that shows one.

    Raises BadImage where no photo shows a face.
    """
    from ..idcodeformer.identity.people import embed_shown
    from ..idcodeformer.identity.recogniser import mean_identity

    parts = (list(reference.part(start, stop)) for start, stop in reference.chunks(most=FRAMES_AT_ONCE))
    shown = embed_shown(parts, detector, recogniser)
    if not len(shown):
        raise BadImage("No face was found in 'reference'; link a photo that shows the person's face.")
    return mean_identity(shown)


def likeness_to(sought: Embeddings, recogniser: IdentityRecogniser):
    """A function that scores faces by their likeness to the nearest of the people sought, [people,D]."""
    from ..idcodeformer.identity.recogniser import cosine

    def score(images: Sequence[Tensor], faces: Sequence[Faces]) -> list[list[float]]:
        flat = cosine(recogniser.embed_faces(images, faces), sought).amax(1).tolist()
        ends = [sum(map(len, faces[:n])) for n in range(len(faces) + 1)]
        return [flat[a:b] for a, b in zip(ends, ends[1:])]

    return score
