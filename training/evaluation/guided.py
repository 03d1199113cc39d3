"""Restoration guided by other photos of the person, and by a stranger's, as rows of the table."""
from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from idcodeformer.guidance.optimise import guide
from idcodeformer.guidance.options import GuidanceOptions
from idcodeformer.identity.recogniser import IdentityRecogniser
from idcodeformer.restoration.tone import match_tone
from idcodeformer.types import Embeddings
from idcodeformer.weights.store import find, sha256_of

from ..config import ConfigError
from ..data.dataset import read_image
from .evalset import EvalSet
from .judges import Judges
from .subjects import ModelSubject, Row, load_network, split_name

VERSION = 1  # of what guidance does; part of the cache's keys


class References:
    """The other photos of each face's person, and a stranger's, embedded by the recogniser that guides.

    Drawn from the whole list by ``seed``; fewer photos are a part of more.
    """

    def __init__(self, faces: EvalSet, recogniser: IdentityRecogniser, digest: str, most: int, seed: int):
        self.recogniser, self.digest = recogniser, digest
        self.identities = np.array([entry.identity for entry in faces.pool])
        self.rows = [self._drawn(int(place), most, seed) for place in faces.places]
        used = sorted({photo for pair in self.rows for photos in pair for photo in photos})
        self.where = {photo: row for row, photo in enumerate(used)}
        crops = [torch.from_numpy(read_image(faces.pool[photo], faces.size)) for photo in used]
        parts = [torch.stack(crops[n : n + 32]).permute(0, 3, 1, 2).float() / 255 for n in range(0, len(crops), 32)]
        self.vectors = torch.cat([recogniser(part).vectors for part in parts])
        self.key = hashlib.sha256(repr([faces.size, self.rows]).encode()).hexdigest()[:16]

    def _drawn(self, place: int, most: int, seed: int) -> tuple[list[int], list[int]]:
        """(photos of the person, photos of a stranger), positions in the whole list."""
        rng = np.random.default_rng([seed, place])
        same = np.flatnonzero(self.identities == self.identities[place])
        own = rng.permutation(same[same != place])[:most]
        others = np.flatnonzero(self.identities != self.identities[place])
        if len(own) < most or not len(others):
            raise ConfigError(f"{self.identities[place]} has {len(own)} other photos; ask for fewer with --references.")
        stranger = np.flatnonzero(self.identities == self.identities[rng.choice(others)])
        return own.tolist(), rng.permutation(stranger)[:most].tolist()

    def of(self, rows: Sequence[int], count: int, wrong: bool) -> Embeddings:
        """[n,D]: the mean of ``count`` photos for each of the faces ``rows``."""
        photos = [[self.where[p] for p in self.rows[row][wrong][:count]] for row in rows]
        means = torch.stack([self.vectors[here].mean(0) for here in photos])
        return Embeddings(torch.nn.functional.normalize(means, dim=1), self.recogniser.name)


class GuidedSubject:
    """A model at one w, guided by ``count`` photos in at most ``steps`` steps; ``wrong``: by a stranger's photos.

    ``of(rows)`` has to come before ``make``, since it matters who the faces are. ``figures`` then tells which faces
    were guided: the gate and the rules of guidance are those of the product, unless ``force`` opens the gate.
    """

    blind = False

    def __init__(
        self, model: ModelSubject, w: float, references: References, count: int, steps: int, wrong: bool, force: bool
    ):
        self.model, self.w, self.references, self.count, self.wrong = model, w, references, count, wrong
        self.guidance = GuidanceOptions(steps, force=force)
        photos = f"{count} photo{'s' * (count != 1)}" + (" of a stranger" if wrong else "")
        self.rows = [Row("stranger" if wrong else "guided", f"{model.name} + {photos}, {steps} steps", w)]
        photos = f"{references.digest} {references.key} {count} {wrong}"
        self.key = f"guided {VERSION} {model.digest} w={w} {model.colours} guide={photos} {self.guidance}"
        self._faces: Sequence[int] | None = None
        self.figures: list[dict[str, np.ndarray]] = []

    def at(self, w: float) -> "GuidedSubject":
        return self

    def of(self, rows: Sequence[int]) -> "GuidedSubject":
        bound = copy.copy(self)
        bound._faces = list(rows)
        return bound

    def make(self, truth: Tensor, degraded: Tensor) -> list[Tensor]:
        assert self._faces is not None
        people = self.references.of(self._faces, self.count, self.wrong)
        options = replace(self.model.options, w=self.w)
        result = guide(self.model.restorer, degraded, people, self.references.recogniser, options, self.guidance)
        self.figures = [{"guided": np.array([not reason for reason in result.reasons], np.float32)}]
        return [match_tone(result.pixels, degraded, options)]


def load_guide(text: str, judges: Judges, device: torch.device) -> tuple[IdentityRecogniser, str]:
    """The recogniser that guides and the sha256 of its file. Raises ConfigError where it would judge itself."""
    _, source = split_name(text)
    path = find(source, "recogniser")
    digest = sha256_of(path)
    independent = [judge for judge in judges.recognisers if judge.role == "independent"]
    for judge in independent:
        if judge.digest == digest:
            raise ConfigError(f"'{judge.name}' guides, so it is no independent judge. Move it to --loss-recogniser.")
    if not independent:
        raise ConfigError("Guided faces need a judge that does not guide; name one with --independent.")
    return IdentityRecogniser(load_network(path, "recogniser"), path.stem, device), digest


def guided_subjects(
    models: Sequence[ModelSubject], w: float, references: References, counts: Sequence[int], steps: Sequence[int],
    force: bool,
) -> list[GuidedSubject]:  # fmt: skip
    """For each model: by number of photos at the most steps, by steps at the most photos, and by strangers' photos."""
    most = max(counts), max(steps)
    plan = sorted({(count, most[1]) for count in counts} | {(most[0], step) for step in steps})
    made = []
    for model in models:
        made += [GuidedSubject(model, w, references, *each, False, force) for each in plan]
        made += [GuidedSubject(model, w, references, *most, True, force)]
    return made
