"""One face seen many times, as along a clip: one offset for all of it, moved on in a few steps where time goes on.

The loss is that of ``optimise``, meant over the frames at hand. An offset made for one frame alone would be another one
in the next, and the face would flicker; a shared one costs a few frames' worth of steps, however long the clip is.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..identity.recogniser import IdentityRecogniser
from ..networks.codeformer import CodeState
from ..restoration.codeformer import CodeFormerRestorer
from ..runtime.memory import faces_per_batch
from ..types import Embeddings, RestoreOptions
from .descent import GRADIENT_FACES, Descent, GuidedFace, copied
from .judging import cosines, drifts, squares_of, vectors_of, why_not
from .options import GuidanceOptions

_LATER = 1 / 3  # of the rate, where an offset is moved on


@dataclass(frozen=True, eq=False)
class Moved:
    """An offset, and what it does to the frames that it was made for."""

    offset: Tensor  # [D,h,w] on the codes, float16, on the CPU
    before: float  # mean cosine of the unguided faces and the person
    after: float  # the same of the guided ones
    judged: float  # change of that by the judge; 0 without one
    drift: float  # rms in [0,1] of the means over squares, the largest of any frame
    steps: int
    reason: str  # why the unguided faces are better; "" where the guided ones are


class SharedGuide:
    """Guides frames of one face towards one person. ``judge``: another recogniser, and the person by it.

    Of ``options``, w and the latent match matter. Raises BadOption for embeddings of another recogniser.
    """

    def __init__(
        self,
        restorer: CodeFormerRestorer,
        recogniser: IdentityRecogniser,
        target: Embeddings,
        options: RestoreOptions,
        guidance: GuidanceOptions,
        judge: tuple[IdentityRecogniser, Embeddings] | None = None,
    ):
        self.target = vectors_of(target, recogniser, 1)
        self.recogniser, self.options, self.guidance, self.judge = recogniser, options, guidance, judge
        self._run = Descent(restorer, recogniser, options, guidance)
        self._offset: Tensor | None = None

    def __call__(self, pixels: Tensor, unguided: Tensor, steps: int) -> Moved:
        """Go on from the last offset, or from none, with frames [n,3,S,S] in [0,1] and as the restorer makes them."""
        run = self._run
        state, squares = run.restorer.encode(pixels), squares_of(pixels)
        before = _mean(cosines(self.recogniser, unguided, self.target))
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(run.device.type, enabled=False):
            faces = self._faces(copied(state), unguided, squares)
            last = faces[0].offset.detach().clone()
            with run.fast:
                made = self._steps(faces, state, steps, before)
                guided = run.pictures(faces, state).to(unguided.device)
        moved = self._judged(unguided, guided, squares, faces[0].offset.detach(), made, before)
        self._offset = last if moved.reason and self._offset is not None else faces[0].offset.detach()
        return moved

    def _faces(self, state: CodeState, unguided: Tensor, squares: list[int]) -> list[GuidedFace]:
        """All with one offset, the last one or none."""
        count = len(squares)
        w = torch.full((count,), float(self.options.w))
        faces = self._run.faces(state, unguided, self.target.expand(count, -1), w, squares)
        first = faces[0].offset if self._offset is None else self._offset.clone().requires_grad_(True)
        for face in faces:
            face.offset = first
        return faces

    def _steps(self, faces: list[GuidedFace], state: CodeState, steps: int, start: float) -> int:
        """Until the frames, ``start`` near to the person unguided, are on average as near as photos of one person."""
        run, count = self._run, len(faces)
        spread = sum(face.spread for face in faces) / count
        rate = self.guidance.rate * (1.0 if self._offset is None else _LATER)  # Adam's first steps go by signs alone
        optimiser = torch.optim.Adam([faces[0].offset], lr=rate * spread)
        random = torch.Generator().manual_seed(0)
        batch = max(1, faces_per_batch(run.restorer.config, run.device) // GRADIENT_FACES)
        goal = start + self.guidance.strength * max(0.0, run.goal - start)
        for step in range(steps if self.guidance.strength > 0 else 0):
            optimiser.zero_grad(set_to_none=True)
            reached = 0.0
            for first in range(0, count, batch):
                here = faces[first : first + batch]
                image = run.decode(here, state)
                likeness = run.likeness(image, here, random)
                drift = torch.stack([face.drift(image[i : i + 1]) for i, face in enumerate(here)])
                ((self.guidance.consistency * drift - likeness).sum() / count).backward()
                reached += float(likeness.detach().sum()) / count
            if reached >= goal:
                return step
            optimiser.step()
        return steps if self.guidance.strength > 0 else 0

    def _judged(self, unguided: Tensor, guided: Tensor, squares: list[int], offset: Tensor, steps: int,
                before: float) -> Moved:  # fmt: skip
        after = _mean(cosines(self.recogniser, guided, self.target))
        judged = 0.0
        if self.judge is not None:
            other, person = self.judge
            theirs = vectors_of(person, other, 1)
            judged = _mean(cosines(other, guided, theirs)) - _mean(cosines(other, unguided, theirs))
        drift = max(drifts(unguided, guided, squares))
        packed = offset[0].to("cpu", torch.float16)
        return Moved(packed, before, after, judged, drift, steps, why_not(before, after, drift, judged, steps or 1))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
