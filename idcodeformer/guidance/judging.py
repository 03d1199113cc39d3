"""Whether a guided face is better than the unguided one: nearer to the person, and still the picture that it was."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BadOption
from ..types import Embeddings

if TYPE_CHECKING:
    from ..identity.recogniser import IdentityRecogniser

_LEAST_GAIN = 0.01  # cosine; a guided face that is not nearer to the reference by that much is not worth a change
# rms in [0,1] of what a 3-px mean takes away from a 128-px crop: medians of 145 LFW faces are 0.0155 clean, 0.0069 at
# x2, 0.0041 at x4, 0.0021 at x8; the limits lie between the 5 % and 95 % points of neighbours.
_DETAIL_X4, _DETAIL_X8 = 0.0053, 0.0029
MOST_DRIFT = 0.04  # rms in [0,1] of the means over squares; further from the unguided face is another picture


def visible_scale(pixels: Tensor, most: int = 8) -> Tensor:
    """[N] int64: side of the squares, a power of two in px of a 128-px crop, below which an input shows no detail.

    ``pixels`` [N,3,S,S] in [0,1]. An input that was enlarged k times loses little where it is reduced k times and
    enlarged again. Noise and JPEG count as detail, so the answer errs towards the finer scale.
    """
    small = F.interpolate(pixels.float(), (128, 128), mode="area") if pixels.shape[-1] != 128 else pixels.float()
    luma = small.mean(1, keepdim=True)
    detail = (luma - F.avg_pool2d(luma, 3, 1, 1, count_include_pad=False)).square().mean((1, 2, 3)).sqrt()
    found = torch.full((len(pixels),), 2, dtype=torch.int64, device=pixels.device)
    for side, least in ((4, _DETAIL_X4), (8, _DETAIL_X8)):
        if side <= most:
            found = torch.where(detail < least, side, found)
    return found


def vectors_of(target: Embeddings, recogniser: IdentityRecogniser, count: int) -> Tensor:
    if target.recogniser != recogniser.name:
        raise BadOption(
            f"The person was embedded by {target.recogniser}, but {recogniser.name} guides; embed the photos with it."
        )
    if len(target) not in (1, count):
        raise BadOption(f"{len(target)} people for {count} faces; give one embedding, or one for each face.")
    return target.vectors.to(recogniser.device).expand(count, -1)


def squares_of(pixels: Tensor) -> list[int]:
    """Side in px of the squares over which each crop [N,3,S,S] keeps its means: what the input shows."""
    return (visible_scale(pixels) * pixels.shape[-1] // 128).clamp(min=1).tolist()


def drifts(unguided: Tensor, guided: Tensor, squares: Sequence[int]) -> list[float]:
    """rms in [0,1] by which the means over squares of each face changed."""
    return [
        float((F.avg_pool2d(a[None], k) - F.avg_pool2d(b[None], k)).square().mean().sqrt())
        for a, b, k in zip(unguided, guided, squares)
    ]


def why_not(before: float, after: float, drift: float, judged: float, steps: int) -> str:
    if not steps:
        return "not guided"
    if not after >= before + _LEAST_GAIN:
        return f"guidance brought no likeness ({before:.2f} to {after:.2f})"
    if judged < 0:
        return f"guidance lost likeness by the judge ({judged:+.2f})"
    if not drift <= MOST_DRIFT:
        return f"guidance changed the picture itself (by {drift * 255:.0f} levels)"
    return ""


def cosines(recogniser: IdentityRecogniser, faces: Tensor, vectors: Tensor) -> list[float]:
    found = recogniser(faces).vectors
    return (found * vectors.to(found.device)).sum(1).clamp(-1, 1).tolist()
