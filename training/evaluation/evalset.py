"""What is measured on: held-out faces, degraded by name and by seed, the same for every model."""
from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Iterator

import numpy as np
import torch
from torch import Tensor

from ..config import ConfigError, DataConfig, DegradationConfig, TrainConfig
from ..data.dataset import DataError, Entry, list_images, read_image
from ..data.degradation import degrade, sample_rng

SOME_OF_A_PERSON = 4  # with a limit: at most so many photographs of one person, so that the subset holds many people


@dataclass(frozen=True, eq=False)
class EvalSet:
    """Usable faces with their place in the whole list, which seeds their degradation: a subset sees the same pixels."""

    root: Path
    entries: tuple[Entry, ...]
    places: np.ndarray  # [N], position of each in the whole list
    size: int  # px
    digest: str  # of the names and contents of all files
    skipped: dict[str, str] = field(default_factory=dict)  # file -> why
    pool: tuple[Entry, ...] = ()  # the whole list

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def identities(self) -> np.ndarray:
        return np.array([e.identity for e in self.entries])

    def name(self, row: int) -> str:
        path = self.entries[row].path
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else path.name

    def batches(
        self, degradation: DegradationConfig, seed: int, batch: int, rows: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """(rows [n], truth, degraded), both [n,3,S,S] in [0,1] and exactly 8 bit."""
        rows = np.arange(len(self)) if rows is None else rows
        for first in range(0, len(rows), batch):
            part = rows[first : first + batch]
            truth = [read_image(self.entries[r], self.size) for r in part]
            bad = [
                degrade(t, degradation, sample_rng(seed, int(self.places[r]))) for t, r in zip(truth, part, strict=True)
            ]
            yield part, _unit(truth), _unit(bad)


def _unit(images: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div_(255).contiguous()


def load_set(
    root: Path, list_csv: str | None, split: str | None, size: int, limit: int, seed: int, others: int = 0
) -> EvalSet:
    """Read the list, choose a subset by ``seed`` if ``limit`` > 0 (whole people, at most four photographs of each), and
    leave out and report what cannot be read. ``others``: only people with so many photographs besides each. Raises
    DataError where nothing is left."""
    if not root.is_dir():
        raise DataError(f"There is no folder {root}. Check --data.")
    if list_csv and not (root / list_csv).is_file():
        raise DataError(f"There is no table {root / list_csv}. Check --list.")
    if split and not list_csv:
        raise DataError("--split chooses rows of a table; name it with --list.")
    entries = list_images(DataConfig(roots=[str(root)], list_csv=list_csv, split=split))
    open_to = _with_others(entries, others) if others else np.arange(len(entries))
    places = _choose(entries, open_to, limit, seed) if limit else open_to
    if not len(places):
        raise DataError(f"Nobody in {root} has {others} other photos; ask for fewer with --references.")
    digest, kept, skipped = hashlib.sha256(str(size).encode()), [], {}
    for place in places:
        entry = entries[place]
        try:
            read_image(entry, size)
        except ValueError as error:
            skipped[str(entry.path)] = str(error)
            continue
        kept.append(place)
        digest.update(f"{place} {entry.identity} ".encode() + hashlib.sha256(entry.read().tobytes()).digest())
    if not kept:
        why = next(iter(skipped.items()))
        raise DataError(f"None of the {len(places)} images can be used; the first, {why[0]}: {why[1]}.")
    chosen = tuple(entries[p] for p in kept)
    return EvalSet(root, chosen, np.array(kept), size, digest.hexdigest(), skipped, tuple(entries))


def _with_others(entries: list[Entry], others: int) -> np.ndarray:
    """Positions of the faces of people with more than ``others`` photographs."""
    _, group, counts = np.unique([e.identity for e in entries], return_inverse=True, return_counts=True)
    return np.flatnonzero(counts[group] > others)


def _choose(entries: list[Entry], open_to: np.ndarray, limit: int, seed: int) -> np.ndarray:
    identities = np.array([entries[place].identity for place in open_to])
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    for who in rng.permutation(np.unique(identities)):
        chosen += rng.permutation(open_to[identities == who])[:SOME_OF_A_PERSON].tolist()
        if len(chosen) >= limit:
            break
    return np.sort(np.array(chosen[:limit]))


def named_degradation(config: TrainConfig, name: str) -> DegradationConfig:
    """The degradation of that name in ``config.degradations``. Raises ConfigError with the names there are."""
    if name not in config.degradations:
        there = ", ".join(sorted(config.degradations)) or "none"
        raise ConfigError(f"Configuration key 'degradations': there is no '{name}'; there: {there}. Check --config.")
    return config.degradations[name]


def degradation_key(degradation: DegradationConfig, seed: int) -> str:
    return repr((sorted(asdict(degradation).items()), seed))
