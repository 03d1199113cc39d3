"""Which of the faces found are worked on, in which order, and why the others are not."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import BadOption
from ..types import DetectOptions, Face, Faces


@dataclass(frozen=True, eq=False)
class Selection:
    """The choice among the faces of one image. Numbers are positions in the faces that were given."""

    faces: Faces  # the kept ones, in the chosen order
    indices: tuple[int, ...]  # where each of them was
    dropped: tuple[tuple[int, str], ...]  # (where it was, why it is not kept), by position


def select(
    faces: Sequence[Face],
    options: DetectOptions,
    image_size: tuple[int, int],
    mask: Tensor | None = None,
    similarities: Sequence[float] | Tensor | None = None,
) -> Selection:
    """Apply ``options`` to the faces of one image of ``image_size`` (height, width).

    ``mask`` [H,W] or [1,H,W] in 0..1, of the image or of any smaller version of it, is needed for keep="mask": the
    centre of the face must lie where it is at least 0.5. ``similarities`` holds one value per face (cosine to the
    reference person) for order="reference". Doubts, confidence and eye distance drop first, then ``keep``,
    then ``max_faces`` in the chosen order. Raises BadOption where the mask or the similarities are missing.
    """
    reasons: dict[int, str] = {}
    for number, face in enumerate(faces):
        reason = _too_poor(face, options)
        if reason:
            reasons[number] = reason
    alive = [n for n in range(len(faces)) if n not in reasons]
    alive.sort(key=_sort_key(faces, options, image_size, similarities))
    kept, why_not = _keep(alive, faces, options, image_size, mask)
    reasons.update({n: why_not for n in alive if n not in kept})
    if options.max_faces > 0:
        beyond = f"beyond the maximum of {options.max_faces} faces (order: {options.order})"
        reasons.update({n: beyond for n in kept[options.max_faces :]})
        kept = kept[: options.max_faces]
    return Selection(tuple(faces[n] for n in kept), tuple(kept), tuple(sorted(reasons.items())))


def _too_poor(face: Face, options: DetectOptions) -> str:
    if not bool(torch.isfinite(face.landmarks).all()):
        return "its landmarks are not numbers"
    if face.doubt:
        return face.doubt
    if face.score < options.confidence:
        return f"score {face.score:.2f} is below the confidence {options.confidence:g}"
    if face.eye_distance < options.min_eye_distance:
        return f"eyes {face.eye_distance:.1f} px apart, below {options.min_eye_distance:g} px"
    return ""


def _centre(face: Face) -> tuple[float, float]:
    return float(face.box[0] + face.box[2]) / 2, float(face.box[1] + face.box[3]) / 2


def _off_centre(face: Face, image_size: tuple[int, int]) -> float:
    """Squared distance in px between the centres of the face and of the image."""
    x, y = _centre(face)
    return (x - (image_size[1] - 1) / 2) ** 2 + (y - (image_size[0] - 1) / 2) ** 2


def _sort_key(
    faces: Sequence[Face],
    options: DetectOptions,
    image_size: tuple[int, int],
    similarities: Sequence[float] | Tensor | None,
) -> Callable[[int], float]:
    if options.order == "reference":
        if similarities is None or len(similarities) != len(faces):
            raise BadOption('order="reference" needs one similarity per face; give reference photos of the person.')
        return lambda n: -float(similarities[n])
    keys: dict[str, Callable[[int], float]] = {
        "size": lambda n: -faces[n].area,
        "left_to_right": lambda n: _centre(faces[n])[0],
        "score": lambda n: -faces[n].score,
        "centre": lambda n: _off_centre(faces[n], image_size),
    }
    if options.order not in keys:
        raise BadOption(f"order is {options.order!r}; choose one of {', '.join(keys)}, reference.")
    return keys[options.order]


def _keep(
    alive: list[int], faces: Sequence[Face], options: DetectOptions, image_size: tuple[int, int], mask: Tensor | None
) -> tuple[list[int], str]:
    """Those of ``alive`` (in order) that ``options.keep`` leaves, and what to say of the others."""
    if options.keep == "all":
        return alive, ""
    if options.keep == "largest":
        return sorted(alive, key=lambda n: -faces[n].area)[:1], "not the largest face"
    if options.keep == "centre":
        return sorted(alive, key=lambda n: _off_centre(faces[n], image_size))[:1], "not the face nearest the centre"
    if options.keep == "indices":
        chosen = [alive[i] for i in range(len(alive)) if i in options.indices]
        return chosen, f"not among the chosen indices {list(options.indices)} (order: {options.order})"
    if options.keep == "mask":
        if mask is None:
            raise BadOption('keep="mask" needs a mask; connect one or choose another rule.')
        inside = _inside(mask, [_centre(faces[n]) for n in alive], image_size)
        return [n for n, hit in zip(alive, inside, strict=True) if hit], "its centre is outside the mask"
    if options.keep == "person":
        raise BadOption('keep="person" is for clips; for pictures take order="reference" and max_faces=1.')
    raise BadOption(f"keep is {options.keep!r}; choose one of all, largest, centre, indices, mask.")


def _inside(mask: Tensor, centres: list[tuple[float, float]], image_size: tuple[int, int]) -> list[bool]:
    """Whether the mask covers each point of the image; a mask of another size is stretched over the image."""
    if mask.dim() == 3 and mask.shape[0] == 1:
        mask = mask[0]
    if mask.dim() != 2 or mask.numel() == 0:
        raise BadOption(f"The mask has shape {tuple(mask.shape)}; give [H,W] or [1,H,W].")
    if not centres:
        return []
    height, width = mask.shape
    points = torch.tensor(centres, dtype=torch.float32) + 0.5
    columns = (points[:, 0] * (width / image_size[1])).long().clamp(0, width - 1)
    rows = (points[:, 1] * (height / image_size[0])).long().clamp(0, height - 1)
    values = mask[rows.to(mask.device), columns.to(mask.device)].float().tolist()
    return [value >= 0.5 for value in values]
