"""A few gradient steps on the code features bring a restored face nearer to photos of the person.

Encoder and Transformer run once. The variable is a continuous offset on the chosen codes, zero at the start, so the
codebook's ceiling does not bind. Each step decodes, crops the face as recognisers see it under a small shift and noise,
and follows the gradient of

    1 - cos(embedding, reference)  +  consistency * mean square of (means over squares, guided - unguided)

The second term holds pose, expression, light and colour at the scale that the input shows. Weights stay as they are, so
any CodeFormer serves. Compare classifier guidance (Dhariwal & Nichol 2021, section 4). Figures and what was tried:
docs/guidance.md.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..runtime.memory import faces_per_batch, in_batches
from ..types import Embeddings, Progress, RestoreOptions
from .descent import GRADIENT_FACES, Descent
from .gate import refusal
from .judging import cosines, drifts, squares_of, vectors_of, why_not
from .options import GuidanceOptions

if TYPE_CHECKING:
    from ..identity.recogniser import IdentityRecogniser
    from ..restoration.codeformer import CodeFormerRestorer


@dataclass(frozen=True, eq=False)
class Guided:
    """Faces after guidance. A face that was not made better is the unguided one, and ``reasons`` says why."""

    pixels: Tensor  # [N,3,S,S] in [0,1]
    unguided: Tensor  # [N,3,S,S] in [0,1]
    before: tuple[float, ...]  # cosine of the unguided face and the reference, by the recogniser that guides
    after: tuple[float, ...]  # the same of the face returned
    steps: tuple[int, ...]  # steps that were made
    reasons: tuple[str, ...]  # "" where the guided face is returned


def told(result: Guided, recogniser: str, judge: str) -> tuple[str, ...]:
    """A line for every face; without the name of a second recogniser as judge it says that the score is the guide's."""
    own = f", judged by {judge}" if judge else "; the score is by the recogniser that guided"
    return tuple(
        reason or f"guided by {recogniser}, {before:.2f} to {after:.2f} in {steps} steps{own}"
        for reason, before, after, steps in zip(result.reasons, result.before, result.after, result.steps)
    )


def guide(
    restorer: CodeFormerRestorer,
    pixels: Tensor,
    target: Embeddings,
    recogniser: IdentityRecogniser,
    options: RestoreOptions | None = None,
    guidance: GuidanceOptions | None = None,
    w: Tensor | None = None,
    judge: tuple[IdentityRecogniser, Embeddings] | None = None,
    progress: Progress | None = None,
    unguided: Tensor | None = None,
) -> Guided:
    """Restore ``pixels`` [N,3,S,S] in [0,1] towards the person of ``target``, one embedding for all faces or one each.

    ``recogniser`` made ``target`` and guides. ``w`` [N] gives each face its own fidelity. ``judge``: another recogniser
    and the same people's embeddings by it; a face that is less like them by it than unguided is not returned.
    ``progress(done, total, "guiding")`` is called after every step and may raise to cancel. ``unguided``: the faces as
    the restorer makes them at that fidelity, where they are at hand. Works inside ``torch.inference_mode``. Raises
    BadOption for embeddings of another recogniser or number, OutOfMemory.
    """
    options, guidance = options or RestoreOptions(), guidance or GuidanceOptions()
    vectors = vectors_of(target, recogniser, len(pixels))
    unguided = restorer(pixels, options, None, w) if unguided is None else unguided
    out, steps = unguided.clone(), [0] * len(pixels)
    refused = ["" if guidance.force else refusal(c, recogniser.name) for c in cosines(recogniser, unguided, vectors)]
    open_to = torch.tensor([i for i, why in enumerate(refused) if not why], dtype=torch.int64)
    total = len(open_to) * guidance.steps

    def step(start: int, stop: int) -> None:
        places = open_to[start:stop]
        here = places.to(pixels.device)
        each = torch.full((len(places),), options.w) if w is None else w[places.to(w.device)]

        def report(done: int) -> None:
            if progress is not None:
                progress(start * guidance.steps + done, total, "guiding")

        guided, made = run(pixels[here], unguided[here], vectors[places.to(vectors.device)], each, report)
        out[here] = guided
        for place, count in zip(places.tolist(), made):
            steps[place] = count

    if total and guidance.strength > 0:
        run = Descent(restorer, recogniser, options, guidance)
        batch = max(1, (options.batch_size or faces_per_batch(restorer.config, restorer.device)) // GRADIENT_FACES)
        in_batches(len(open_to), batch, step, None, "guiding")
    return _better(pixels, unguided, out, vectors, recogniser, judge, steps, refused)


def _better(
    pixels: Tensor,
    unguided: Tensor,
    guided: Tensor,
    vectors: Tensor,
    recogniser: IdentityRecogniser,
    judge: tuple[IdentityRecogniser, Embeddings] | None,
    steps: Sequence[int],
    refused: Sequence[str],
) -> Guided:
    """Each face as it is better: guided where it is nearer to the person and still the picture that it was."""
    before, after = (cosines(recogniser, faces, vectors) for faces in (unguided, guided))
    drift = drifts(unguided, guided, squares_of(pixels))
    judged = [0.0] * len(pixels)
    if judge is not None:
        other, people = judge
        theirs = vectors_of(people, other, len(pixels))
        judged = [b - a for a, b in zip(*(cosines(other, faces, theirs) for faces in (unguided, guided)))]
    reasons = [why or why_not(*v) for why, *v in zip(refused, before, after, drift, judged, steps)]
    keep = torch.tensor([not reason for reason in reasons], device=unguided.device).view(-1, 1, 1, 1)
    reached = [a if not reason else b for a, b, reason in zip(after, before, reasons)]
    return Guided(torch.where(keep, guided, unguided), unguided, tuple(before), tuple(reached), tuple(steps),
                  tuple(reasons))  # fmt: skip
