"""Folders of aligned faces -> batches of (truth, degraded) pairs, reproducible whatever the number of workers.

A *position* counts the samples of a run: step * batch + place in the batch. It decides which image is read, how it is
flipped and how it is degraded, so that a resumed run, another worker count or a split over processes sees the same pixels.
"""
from __future__ import annotations

import csv
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .config import DataConfig, DegradationConfig
from .degrade import degrade, sample_rng

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
MIN_SHARE = 0.5  # an image whose side is under this share of the network's would only teach blur


class DataError(RuntimeError):
    """Nothing to train on; the message says which folder."""


@dataclass(frozen=True)
class Entry:
    path: Path
    identity: str


def list_images(config: DataConfig) -> list[Entry]:
    """All images of the folders in sorted order; the identity is the parent folder's name, or the table's column."""
    if not config.roots:
        raise DataError("data.roots names no folder. Give one: data.roots=[/folder/of/aligned/faces]")
    entries: list[Entry] = []
    if config.list_csv:
        root = Path(config.roots[0])
        with open(root / config.list_csv, newline="") as file:
            for row in csv.DictReader(file):
                if config.split is None or row.get("split") == config.split:
                    entries.append(Entry(root / row["path"], row.get("identity", "")))
    else:
        for root in map(Path, config.roots):
            if not root.is_dir():
                raise DataError(f"There is no folder {root}. Check data.roots.")
            found = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            entries += [Entry(p, p.parent.name) for p in found]
    if not entries:
        raise DataError(f"No image in {', '.join(config.roots)} (any depth; {', '.join(sorted(SUFFIXES))}).")
    return entries[: config.limit] if config.limit else entries


def read_image(path: Path, size: int) -> np.ndarray:
    """uint8 RGB [size,size,3] of an aligned square face. Raises ValueError saying why the file is of no use."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError("not readable as an image")
    height, width = image.shape[:2]
    if min(height, width) < size * MIN_SHARE:
        raise ValueError(f"{width}x{height} is too small for {size} px")
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    image = image[top : top + side, left : left + side]
    if side != size:
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_CUBIC)
    return np.ascontiguousarray(image[..., ::-1])


class Skipped:
    """What could not be used, for the log: counted and listed, each file once."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def add(self, path: Path, reason: str) -> None:
        if str(path) not in self.reasons:
            self.reasons[str(path)] = reason
            warnings.warn(f"Skipped {path}: {reason}.", stacklevel=2)


class PairDataset(Dataset):
    """``dataset[position]`` -> dict(truth uint8 [3,S,S], degraded uint8 [3,S,S], label, name)."""

    def __init__(self, config: DataConfig, degradation: DegradationConfig | None, seed: int, shuffle: bool = True):
        self.config, self.degradation, self.seed, self.shuffle = config, degradation, seed, shuffle
        self.entries = list_images(config)
        names = sorted({e.identity for e in self.entries})
        self.labels = {name: i for i, name in enumerate(names)}
        self.skipped = Skipped()
        self._cache: dict[int, np.ndarray | str] = {}
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def _index(self, position: int) -> int:
        epoch, place = divmod(position, len(self.entries))
        if not self.shuffle:
            return place
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, sample_rng(self.seed + 1_000_003, epoch).permutation(len(self.entries)))
        return int(self._order[1][place])

    def _read(self, index: int) -> np.ndarray | str:
        """The image, or why there is none."""
        if index in self._cache:
            return self._cache[index]
        result: np.ndarray | str
        try:
            result = read_image(self.entries[index].path, self.config.size)
        except ValueError as error:
            result = str(error)
            self.skipped.add(self.entries[index].path, result)
        if self.config.cache or isinstance(result, str):
            self._cache[index] = result
        return result

    def __getitem__(self, position: int) -> dict[str, Any]:
        index = self._index(position)
        for _ in range(len(self.entries)):
            image = self._read(index)
            if isinstance(image, np.ndarray):
                break
            index = (index + 1) % len(self.entries)  # the neighbour stands in: batches keep their size
        else:
            raise DataError(f"None of the {len(self.entries)} images can be used; the first: {self.skipped.reasons}")
        rng = sample_rng(self.seed, position)
        if rng.uniform() < 0.5 and self.config.hflip:
            image = image[:, ::-1]
        bad = image if self.degradation is None else degrade(np.ascontiguousarray(image), self.degradation, rng)
        entry = self.entries[index]
        return {
            "truth": torch.from_numpy(image.transpose(2, 0, 1).copy()),
            "degraded": torch.from_numpy(bad.transpose(2, 0, 1).copy()),
            "label": self.labels[entry.identity],
            "index": index,
            "position": position,
            "name": str(entry.path),
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


def _one_thread(_: int) -> None:
    cv2.setNumThreads(0)


def make_loader(dataset: Dataset, batches: PositionBatches, workers: int, collate: Callable | None = None) -> DataLoader:
    cv2.setNumThreads(0)
    return DataLoader(
        dataset, batch_sampler=batches, num_workers=workers, collate_fn=collate, worker_init_fn=_one_thread,
        persistent_workers=False, pin_memory=torch.cuda.is_available(),
    )  # fmt: skip


def to_unit(images: torch.Tensor, device: torch.device | str | None = None) -> torch.Tensor:
    """uint8 [N,3,S,S] -> float32 in [-1,1]."""
    return images.to(device).float().div_(127.5).sub_(1.0)


def fixed_set(config: DataConfig, degradation: DegradationConfig, seed: int, count: int) -> dict[str, Any]:
    """The first ``count`` images of a shuffled set, degraded once and for all: for validation and for sample grids."""
    dataset = PairDataset(_still(config), degradation, seed)
    items = [dataset[i] for i in range(min(count, len(dataset)))]
    return {
        "truth": torch.stack([i["truth"] for i in items]),
        "degraded": torch.stack([i["degraded"] for i in items]),
        "name": [i["name"] for i in items],
    }


def _still(config: DataConfig) -> DataConfig:
    return DataConfig(**{**config.__dict__, "hflip": False, "cache": False})


def names_of(batch: dict[str, Any]) -> Sequence[str]:
    return batch["name"]
