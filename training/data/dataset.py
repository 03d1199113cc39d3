"""Aligned faces -> batches of (truth, degraded) pairs, reproducible whatever the number of workers.

A *position* counts the samples of a run: step * batch + place in the batch. It decides which image is read, how it is
flipped and how it is degraded, so that a resumed run, another worker count or a split over processes sees the same
pixels.
"""
from __future__ import annotations

import signal
from collections import Counter
from dataclasses import replace
from typing import Any, Callable, Iterator, Mapping, Sequence

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from ..config import DataConfig, DegradationConfig
from ..errors import DataError
from .degradation import degrade, sample_rng
from .sampling import stream_rng
from .sources import MIN_SHARE, SUFFIXES, Entry, list_images, read_image

__all__ = [
    "MIN_SHARE", "SUFFIXES", "DataError", "Entry", "PairDataset", "PositionBatches", "fixed_set", "list_images",
    "make_loader", "read_image", "to_unit",
]  # fmt: skip

SHARDS_MIXED = 8  # shards between which samples are shuffled, so that few files are read at a time


class PairDataset(Dataset):
    """``dataset[position]`` -> dict(truth uint8 [3,S,S], degraded uint8 [3,S,S], label, name, skipped ...).

    An image that cannot be used is replaced by its neighbour, so that batches keep their size; ``skipped`` of the
    sample then lists (name, reason) of the images met for the first time. It travels in the batch because the loader's
    workers are processes of their own. With ``others`` a sample also has ``other`` uint8 [3,S,S]: another photo of the
    person, drawn by position and flipped alike, or the truth again where the person has none.
    """

    def __init__(
        self,
        config: DataConfig,
        degradation: DegradationConfig | None,
        seed: int,
        shuffle: bool = True,
        others: bool = False,
    ):
        self.config, self.degradation, self.seed, self.shuffle = config, degradation, seed, shuffle
        self.entries = list_images(config)
        names = sorted({e.identity for e in self.entries})
        self.labels = {name: i for i, name in enumerate(names)}
        self.others: dict[str, list[int]] | None = None
        if others:
            self.others = {}
            for index, entry in enumerate(self.entries):
                self.others.setdefault(entry.identity, []).append(index)
        self._cache: dict[int, np.ndarray | str] = {}
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def _shuffled(self, epoch: int) -> np.ndarray:
        """Order of an epoch. Shards come in random order, and samples are mixed among a few of them at a time."""
        rng = sample_rng(self.seed + 1_000_003, epoch)
        if not self.config.shards:
            return rng.permutation(len(self.entries))
        starts = [i for i, e in enumerate(self.entries) if i == 0 or e.path != self.entries[i - 1].path]
        shards = np.split(np.arange(len(self.entries)), starts[1:])
        turns = rng.permutation(len(shards))
        groups = [turns[i : i + SHARDS_MIXED] for i in range(0, len(turns), SHARDS_MIXED)]
        return np.concatenate([rng.permutation(np.concatenate([shards[t] for t in group])) for group in groups])

    def _index(self, position: int) -> int:
        epoch, place = divmod(position, len(self.entries))
        if not self.shuffle:
            return place
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self._shuffled(epoch))
        return int(self._order[1][place])

    def _read(self, index: int, skipped: list[tuple[str, str]]) -> np.ndarray | str:
        """The image, or why there is none."""
        if index in self._cache:
            return self._cache[index]
        result: np.ndarray | str
        try:
            result = read_image(self.entries[index], self.config.size)
        except ValueError as error:
            result = str(error)
            skipped.append((self.entries[index].name, result))
        if self.config.cache or isinstance(result, str):
            self._cache[index] = result
        return result

    def _usable(self, index: int) -> tuple[int, np.ndarray, list[tuple[str, str]]]:
        """The first usable image from ``index`` on: its index, its pixels, and what was skipped on the way."""
        skipped: list[tuple[str, str]] = []
        for _ in range(len(self.entries)):
            image = self._read(index, skipped)
            if isinstance(image, np.ndarray):
                return index, image, skipped
            index = (index + 1) % len(self.entries)
        reasons = Counter(v for v in self._cache.values() if isinstance(v, str)).most_common(3)
        raise DataError(
            f"None of the {len(self.entries)} images can be used, {self.entries[0].name} to begin with: "
            f"{'; '.join(f'{reason} ({n})' for reason, n in reasons)}. Give other images, or a smaller data.size."
        )

    def check(self) -> None:
        """Raise DataError where not one image can be used: here rather than inside a worker."""
        self._usable(0)
        self._cache.clear()
        if self.others is not None and all(len(same) < 2 for same in self.others.values()):
            raise DataError(
                f"No person in {self.entries[0].path.parent} and beside it has two photos. Give faces in folders by "
                "person or a table with identities, or set loss.identity_other=0."
            )

    def _other(self, index: int, position: int, skipped: list[tuple[str, str]]) -> np.ndarray | None:
        """Another photo of the person on image ``index``; None where there is none, or the one drawn is of no use."""
        assert self.others is not None
        photos = [i for i in self.others[self.entries[index].identity] if i != index]
        if not photos:
            return None
        image = self._read(photos[stream_rng(self.seed, position, "other").integers(len(photos))], skipped)
        return image if isinstance(image, np.ndarray) else None

    def __getitem__(self, position: int) -> dict[str, Any]:
        index, image, skipped = self._usable(self._index(position))
        rng = sample_rng(self.seed, position)
        flipped = rng.uniform() < 0.5 and self.config.hflip
        if flipped:
            image = image[:, ::-1]
        bad = image if self.degradation is None else degrade(np.ascontiguousarray(image), self.degradation, rng)
        entry, more = self.entries[index], {}
        if self.others is not None:
            other = self._other(index, position, skipped)
            other = image if other is None else other[:, ::-1] if flipped else other
            more["other"] = torch.from_numpy(other.transpose(2, 0, 1).copy())
        return {
            **more,
            "truth": torch.from_numpy(image.transpose(2, 0, 1).copy()),
            "degraded": torch.from_numpy(bad.transpose(2, 0, 1).copy()),
            "label": self.labels[entry.identity],
            "index": index,
            "position": position,
            "name": entry.name,
            "skipped": skipped,
        }


class PositionBatches:
    """The batches of positions that one process sees, from ``start`` on (a step)."""

    def __init__(self, batch: int, rank: int, world: int, start: int, steps: int):
        self.local, self.batch, self.rank, self.start, self.steps = batch // world, batch, rank, start, steps

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.steps):
            first = step * self.batch + self.rank * self.local
            yield list(range(first, first + self.local))


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Stacked tensors, names as a list, and the lists of skipped images joined."""
    batch = default_collate([{k: v for k, v in s.items() if k != "skipped"} for s in samples])
    return {**batch, "skipped": [pair for s in samples for pair in s["skipped"]]}


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the trainer still wants its step


def make_loader(dataset: Dataset, batches: PositionBatches, workers: int, join: Callable = collate) -> DataLoader:
    cv2.setNumThreads(0)
    return DataLoader(
        dataset, batch_sampler=batches, num_workers=workers, collate_fn=join, worker_init_fn=_start_worker,
        persistent_workers=False, pin_memory=torch.cuda.is_available(),
    )  # fmt: skip


def to_unit(images: torch.Tensor, device: torch.device | str | None = None) -> torch.Tensor:
    """uint8 [N,3,S,S] -> float32 in [-1,1]."""
    return images.to(device).float().div_(127.5).sub_(1.0)


def fixed_set(
    config: DataConfig, degradation: DegradationConfig, seed: int, count: int, pairs: bool = False
) -> dict[str, Any]:
    """The first ``count`` images of a shuffled set, degraded once and for all: for validation and for sample grids.

    With ``pairs`` images of one person follow each other, two of each, as far as the set has such people.
    """
    dataset = PairDataset(replace(config, hflip=False, cache=False), degradation, seed)
    places = list(range(len(dataset)))
    if pairs:
        people: dict[str, list[int]] = {}
        for place in places:
            people.setdefault(dataset.entries[dataset._index(place)].identity, []).append(place)
        places = [p for same in people.values() if len(same) > 1 for p in same[:2]] or places
    return collate([dataset[place] for place in places[:count]])
