"""Crops -> restored crops, each as near to its person as asked: who is it, how faithful, and guidance."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import BadOption
from ..identity.known import Known
from ..identity.people import Named, People
from ..types import Embeddings, Progress, RestoreOptions, Restorer
from .fidelity import Fidelity, lowest_fidelity
from .gate import least_likeness, refusal
from .optimise import guide, told
from .options import GuidanceOptions

if TYPE_CHECKING:
    from ..identity.recogniser import IdentityRecogniser


@dataclass(frozen=True, eq=False)
class RestoredCrops:
    """Restored faces, not yet in the tones of their input, and what was done to each."""

    pixels: Tensor  # [N,3,S,S] in [0,1]
    w: tuple[float | None, ...]  # None: the restorer has no fidelity
    named: tuple[Named | None, ...]  # who each is; None for nobody known
    guidance: tuple[str, ...]  # what guidance did or why not; "" where none was asked for
    notes: tuple[str, ...]  # what else is to be said
    guided: tuple[bool, ...]

    def patched(self, places: Sequence[int], other: RestoredCrops) -> RestoredCrops:
        """With the faces of ``other`` in ``places``."""
        parts: dict[str, Any] = {}
        for name in ("w", "named", "guidance", "notes", "guided"):
            values = list(getattr(self, name))
            for place, value in zip(places, getattr(other, name)):
                values[place] = value
            parts[name] = tuple(values)
        index = torch.tensor(list(places), device=self.pixels.device)
        return replace(self, pixels=self.pixels.index_copy(0, index, other.pixels), **parts)


@dataclass(frozen=True, eq=False)
class FaceWork:
    """What is done with crops of faces. ``guide`` guides, ``recogniser`` scores and judges; they may be the same."""

    options: RestoreOptions
    known: Known | None = None
    guidance: GuidanceOptions | None = None
    recogniser: IdentityRecogniser | None = None
    guide: IdentityRecogniser | None = None
    w: Tensor | None = None  # [N] in [0,1] on the CPU: the fidelity of each crop, in place of that of ``options``

    def __post_init__(self) -> None:
        if self.guiding and self.known is None:
            raise BadOption("Guidance needs photos of the person; pass references= or people=, or guidance steps of 0.")
        if (self.guiding or self.known is not None) and self.guide is None:
            raise BadOption("References and people need a recogniser; build the pipeline with load_recogniser().")
        if self.known is not None and (self.guiding or self.scorer is None):
            self.known.need(self.guide if self.guiding or self.recogniser is None else self.recogniser)
        if self.options.identity_target > 0 and self.recogniser is None:
            raise BadOption("An identity target needs a recogniser; build the pipeline with load_recogniser().")

    @property
    def guiding(self) -> bool:
        """Whether guidance is asked for."""
        return self.guidance is not None and self.guidance.steps > 0

    @property
    def namer(self) -> tuple[IdentityRecogniser, People]:
        """Who says which face is whom: the recogniser that guides, else one that knows the people."""
        assert self.known is not None and self.guide is not None
        if not self.guiding and (people := self.known.by(self.recogniser)) is not None:
            assert self.recogniser is not None
            return self.recogniser, people
        return self.guide, self.known.need(self.guide)

    @property
    def scorer(self) -> tuple[IdentityRecogniser, People] | None:
        """Who measures likeness to the people: the recogniser that scores, else the one that guides."""
        for one in (self.recogniser, self.guide):
            if self.known is not None and one is not None and (people := self.known.by(one)) is not None:
                return one, people
        return None

    def __call__(
        self, restorer: Restorer, pixels: Tensor, images: Tensor, progress: Progress | None = None
    ) -> RestoredCrops:
        """Restore crops [N,3,S,S] in [0,1]; ``images`` [N]: the picture each is from. Raises BadOption, OutOfMemory."""
        count, options = len(pixels), self.options
        ws, notes, faces = self.w, ("",) * count, None
        each: dict[str, Tensor] = {}
        if ws is not None:
            if not getattr(restorer, "has_fidelity", True):
                raise BadOption("Fidelities of single faces need a CodeFormer; this restorer has no fidelity.")
            each = {"w": ws}
        named: tuple[Named | None, ...] = (None,) * count
        why = [""] * count
        if self.known is not None and (self.guiding or not self.known.shared):
            faces = restorer(pixels, options, progress, **each)
            named, why = self._who(faces, images)
        if options.identity_target > 0:
            found = self._faithful(restorer, pixels, named, progress)
            ws, faces, notes = found.w, found.pixels, found.notes(options.identity_target)
        elif faces is None:
            faces = restorer(pixels, options, progress, **each)
        given = options.w if getattr(restorer, "has_fidelity", True) else None
        w = (given,) * count if ws is None else tuple(ws.tolist())
        done = RestoredCrops(faces, w, named, ("",) * count, notes, (False,) * count)
        return self._guided(restorer, pixels, done, ws, why, progress) if self.guiding else done

    def _who(self, faces: Tensor, images: Tensor) -> tuple[tuple[Named | None, ...], list[str]]:
        """The person of each restored, unguided face, one to one within a picture, and why a face has none."""
        recogniser, people = self.namer
        vectors = recogniser(faces).vectors
        force = self.guidance is not None and self.guidance.force
        gate = -1.0 if force else least_likeness(recogniser.name)
        named: list[Named | None] = [None] * len(faces)
        why = [""] * len(faces)
        for image in images.unique().tolist():
            places = (images == image).nonzero()[:, 0].tolist()
            here = Embeddings(vectors[places], recogniser.name)
            likeness = (here.vectors @ people.identities.vectors.to(here.vectors).t()).max(1)
            for place, who, best, person in zip(places, people.name(here, gate), *map(Tensor.tolist, likeness)):
                named[place] = who
                if who is None:
                    why[place] = nobody_known(best, people.persons[person].name, recogniser.name)
        return tuple(named), why

    def _faithful(
        self, restorer: Any, pixels: Tensor, named: Sequence[Named | None], progress: Progress | None
    ) -> Fidelity:
        """At the lowest w that is like the person of each face where one is known, else like its input."""
        scorer = self.scorer
        judge = self.recogniser if scorer is None else scorer[0]
        assert judge is not None
        aims = judge(pixels).vectors.clone()
        if scorer is not None and self.known is not None:
            persons = scorer[1].identities.vectors.to(aims)
            for face, who in enumerate(named):
                if self.known.shared or who is not None:
                    aims[face] = persons[who.person if who is not None else 0]
        return lowest_fidelity(restorer, pixels, aims, judge, self.options, progress)

    def _guided(
        self, restorer: Any, pixels: Tensor, done: RestoredCrops, ws: Tensor | None, why: Sequence[str],
        progress: Progress | None,
    ) -> RestoredCrops:  # fmt: skip
        """The faces that are somebody, guided towards that person; the others as they are, with the reason."""
        if not hasattr(restorer, "decoder"):
            raise BadOption("Guidance needs a CodeFormer; this restorer has no codes. Choose guidance steps of 0.")
        assert self.known is not None and self.guide is not None and self.guidance is not None
        lines, guided = list(why), [False] * len(pixels)
        places = [face for face, who in enumerate(done.named) if who is not None]
        if not places:
            return replace(done, guidance=tuple(lines))
        target = _of(self.known.need(self.guide), [done.named[face] for face in places])
        judge, people = None, self.known.by(self.recogniser)
        if self.recogniser is not self.guide and people is not None:
            judge = (self.recogniser, _of(people, [done.named[face] for face in places]))
        index = torch.tensor(places, device=pixels.device)
        each = None if ws is None else ws[places]
        result = guide(restorer, pixels[index], target, self.guide, self.options, self.guidance, each, judge, progress,
                       done.pixels[index])  # fmt: skip
        judged = "" if judge is None else judge[0].name
        for face, line, reason in zip(places, told(result, self.guide.name, judged), result.reasons):
            lines[face], guided[face] = line, not reason
        faces = done.pixels.index_copy(0, index, result.pixels)
        return replace(done, pixels=faces, guidance=tuple(lines), guided=tuple(guided))


def _of(people: People, named: Sequence[Named | None]) -> Embeddings:
    """[n,D], the person of each face."""
    rows = [who.person for who in named if who is not None]
    return Embeddings(people.identities.vectors[rows], people.recogniser)


def nobody_known(likeness: float, nearest: str, recogniser: str) -> str:
    """Why a face goes unguided that is nobody."""
    reason = refusal(likeness, recogniser)
    if not reason:
        return f"not guided: another face of the picture is nearer to {nearest or 'the person'}"
    return reason.replace("the reference", nearest) if nearest else reason
