"""Fidelity by target: the lowest w at which a restored face is as much like the person as asked.

Encoder and Transformer run once. w is tried upwards in eighths, for the faces alone that are not there yet, and the
step in which a face arrives is halved three times. Likeness need not rise with w: the answer lies within the lowest
eighth that is enough, a 64th above where it is not.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import BadOption
from ..networks.codeformer import CodeState
from ..restoration.tone import is_monochrome, match_tone
from ..runtime.memory import faces_per_batch, in_batches
from ..types import Progress, RestoreOptions

if TYPE_CHECKING:
    from ..identity.recogniser import IdentityRecogniser
    from ..restoration.codeformer import CodeFormerRestorer

_STEPS = 8
_HALVINGS = 3


@dataclass(frozen=True, eq=False)
class Fidelity:
    """Faces at the lowest fidelity that is enough; where none is, at w = 1."""

    pixels: Tensor  # [N,3,S,S] in [0,1], before the tones of the input are given back
    w: Tensor  # [N] in [0,1], on the CPU
    likeness: tuple[float, ...]  # cosine of the face, in the tones of the input, and the person
    reached: tuple[bool, ...]

    def notes(self, target: float) -> tuple[str, ...]:
        """What is said of each face: "" where the target was reached."""
        return tuple(
            "" if there else f"identity target {target:g} not reached: {likeness:.2f} at w 1"
            for there, likeness in zip(self.reached, self.likeness)
        )


def lowest_fidelity(
    restorer: CodeFormerRestorer,
    pixels: Tensor,
    people: Tensor,
    recogniser: IdentityRecogniser,
    options: RestoreOptions,
    progress: Progress | None = None,
) -> Fidelity:
    """Restore ``pixels`` [N,3,S,S] in [0,1] at the lowest w that keeps ``options.identity_target``.

    ``people`` [N,D]: the unit vector, by ``recogniser``, that each face shall be like. Raises BadOption for a restorer
    without codes, OutOfMemory.
    """
    if not hasattr(restorer, "decode"):
        raise BadOption("An identity target needs a CodeFormer; this restorer has no fidelity. Choose a target of 0.")
    out, w = torch.empty_like(pixels), torch.ones(len(pixels))
    likeness: list[float] = []
    reached: list[bool] = []

    def step(start: int, stop: int) -> None:
        search = _Search(restorer, pixels[start:stop], people[start:stop], recogniser, options)
        search.run()
        out[start:stop], w[start:stop] = search.best, search.w
        likeness.extend(search.likeness)  # batches end in their order; one that fell short of memory added nothing
        reached.extend(search.reached)

    batch = options.batch_size or faces_per_batch(restorer.config, restorer.device)
    in_batches(len(pixels), batch, step, progress)
    return Fidelity(out, w, tuple(likeness), tuple(reached))


class _Search:
    """One batch: its codes, and for each face the lowest w found so far with its pixels."""

    def __init__(
        self,
        restorer: CodeFormerRestorer,
        pixels: Tensor,
        people: Tensor,
        recogniser: IdentityRecogniser,
        options: RestoreOptions,
    ):
        self.restorer, self.pixels, self.people = restorer, pixels, people
        self.recogniser, self.options = recogniser, options
        self.state = restorer.encode(pixels)
        self.gray = is_monochrome(pixels) if options.gray == "auto" else None  # asked once, not at every try
        self.best, self.w = torch.empty_like(pixels), torch.ones(len(pixels))
        self.likeness, self.reached = [math.nan] * len(pixels), [False] * len(pixels)

    def run(self) -> None:
        for number in range(_STEPS + 1):
            here = [face for face, there in enumerate(self.reached) if not there]
            self._attempt(here, torch.full((len(here),), number / _STEPS), last=number == _STEPS)
        gap = 1 / _STEPS
        for _ in range(_HALVINGS):
            gap /= 2
            here = [face for face, there in enumerate(self.reached) if there and self.w[face] > 0]
            self._attempt(here, self.w[here] - gap)

    def _attempt(self, faces: list[int], w: Tensor, last: bool = False) -> None:
        """Decode ``faces`` at ``w`` [n] and keep those that are like their person, or all with ``last``."""
        if not faces:
            return
        images = self.restorer.decode(_rows(self.state, faces), w, self.options).to(self.pixels.device)
        gray = None if self.gray is None else self.gray[faces]
        toned = match_tone(images, self.pixels[faces], self.options, gray, w.tolist())
        people = self.people[faces]
        seen = (self.recogniser(toned).vectors.to(people.device) * people).sum(1).clamp(-1, 1).tolist()
        for place, (face, likeness) in enumerate(zip(faces, seen)):
            there = likeness >= self.options.identity_target
            if there or last:
                self.best[face], self.w[face], self.likeness[face] = images[place], w[place], likeness
                self.reached[face] = there


def _rows(state: CodeState, faces: list[int]) -> CodeState:
    features = {side: part[faces] for side, part in state.features.items()}
    return CodeState(state.logits[faces], state.quant[faces], state.lq_feat[faces], features)
