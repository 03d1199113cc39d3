"""Face pictures with label maps: ``images/NAME.jpg`` beside ``masks/NAME.png`` (palette or gray: the labels).

The held-out maps are every tenth name in sorted order, the first to begin with, of any such folder: ``split: val``.
They never enter training (``split: train``). Every draw depends on the run's seed and the sample's position alone.
"""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Mapping

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from idcodeformer.compositing.parsing import CLASSES

from ..config import DataConfig, ParserConfig, TrainConfig
from ..config.schema import DegradationConfig
from ..errors import DataError
from .dataset import collate
from .degradation import degrade, sample_rng
from .sources import SUFFIXES, Entry

HELD_EVERY = 10
READ = 2  # times data.size: pictures are kept larger, so that turning and zooming them loses nothing
RARE = tuple(CLASSES.index(name) for name in ("glasses", "hat", "earring", "necklace"))
MIRRORED = np.arange(len(CLASSES), dtype=np.uint8)
for _name in ("eye", "brow", "ear"):
    _left, _right = CLASSES.index(f"left_{_name}"), CLASSES.index(f"right_{_name}")
    MIRRORED[_left], MIRRORED[_right] = _right, _left


def list_pairs(config: DataConfig) -> list[tuple[Path, Path]]:
    """(picture, map) of ``config.split`` (train, val, or all for None) in all roots. Raises DataError."""
    if not config.roots:
        raise DataError("data.roots names no folder. Give one that holds images/ and masks/: data.roots=[/folder]")
    pairs: list[tuple[Path, Path]] = []
    for root in map(Path, config.roots):
        folder = root / "images"
        if not folder.is_dir() or not (root / "masks").is_dir():
            raise DataError(f"{root} does not hold the folders images and masks. Check data.roots.")
        pictures = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
        for place, picture in enumerate(pictures):
            if config.split is None or (place % HELD_EVERY == 0) == (config.split == "val"):
                pairs.append((picture, root / "masks" / f"{picture.stem}.png"))
    if not pairs:
        raise DataError(f"No picture of split {config.split} in {', '.join(config.roots)}.")
    return pairs[: config.limit] if config.limit else pairs


def read_pair(picture: Path, labels: Path, size: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 RGB [size,size,3] and labels [size,size]. Raises ValueError saying why the pair is of no use."""
    from PIL import Image

    try:
        with Image.open(picture) as file:
            image = np.asarray(file.convert("RGB"))
        with Image.open(labels) as file:
            map_ = np.asarray(file if file.mode in ("P", "L") else file.convert("L"))
    except OSError as error:
        raise ValueError(f"cannot be read ({error})") from error
    if map_.max() >= len(CLASSES):
        raise ValueError(f"{labels} holds label {map_.max()}; there are {len(CLASSES)} classes")
    if image.shape[0] != image.shape[1] or map_.shape[0] != map_.shape[1]:
        raise ValueError(f"{image.shape[:2]} picture and {map_.shape} map are not squares")
    if image.shape[0] != size:
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    if map_.shape[0] != size:
        map_ = cv2.resize(map_, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)
    return image, map_


class ParsingDataset(Dataset):
    """``dataset[position]`` -> dict(truth uint8 [3,S,S], degraded uint8 [3,S,S], mask uint8 [S,S], name, position ...).

    ``truth`` is the picture as turned and coloured, ``degraded`` what the network sees of it. Pictures with a rare
    class come ``rule.rare`` times in an epoch. All pairs are read once, when the first is asked for.
    """

    def __init__(self, config: DataConfig, degradation: DegradationConfig, rule: ParserConfig, seed: int):
        self.config, self.degradation, self.rule, self.seed = config, degradation, rule, seed
        self.pairs = list_pairs(config)
        self.labels: dict[str, int] = {}  # faces have no identities here
        self.entries = [Entry(picture, "") for picture, _ in self.pairs]
        self._read: list[tuple[np.ndarray, np.ndarray, str]] = []
        self._turns = np.zeros(0, np.int64)
        self._skipped: list[tuple[str, str]] = []

    def check(self) -> None:
        """Read everything; DataError where not one pair can be used."""
        if self._read:
            return
        turns: list[int] = []
        for picture, labels in self.pairs:
            try:
                image, map_ = read_pair(picture, labels, READ * self.config.size)
            except ValueError as error:
                self._skipped.append((str(picture), str(error)))
                continue
            rare = bool(np.isin(map_, RARE).any())
            turns += [len(self._read)] * (self.rule.rare if rare else 1)
            self._read.append((image, map_, str(picture)))
        if not self._read:
            name, reason = self._skipped[0]
            raise DataError(f"None of the {len(self.pairs)} pairs can be used, {name} to begin with: {reason}.")
        self._turns = np.array(turns)

    def __len__(self) -> int:
        self.check()
        return len(self._turns)

    def plain(self, index: int) -> dict[str, Any]:
        """The ``index``-th pair as it is, by name: no turn, no degradation."""
        self.check()
        image, map_, name = self._read[index]
        return self._sample(image, map_, None, index, name)

    def count(self) -> int:
        """Pairs that can be read."""
        self.check()
        return len(self._read)

    def __getitem__(self, position: int) -> dict[str, Any]:
        epoch, place = divmod(position, len(self))
        order = sample_rng(self.seed + 1_000_003, epoch).permutation(len(self._turns))
        image, map_, name = self._read[int(self._turns[order[place]])]
        rng = sample_rng(self.seed, position)
        if rng.uniform() < 0.5 and self.config.hflip:
            image, map_ = image[:, ::-1], MIRRORED[map_[:, ::-1]]
        image, map_ = warp(image, map_, self.rule, rng)
        image = recolour(image, self.rule, rng)
        image, map_ = cover(image, map_, self.rule, rng)
        return self._sample(image, map_, rng, position, name)

    def _sample(
        self, image: np.ndarray, map_: np.ndarray, rng: np.random.Generator | None, position: int, name: str
    ) -> dict[str, Any]:
        size = (self.config.size, self.config.size)
        truth = cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA)
        seen = truth
        if rng is not None and rng.uniform() < self.rule.degrade:
            seen = degrade(truth, self.degradation, rng)
        map_ = cv2.resize(np.ascontiguousarray(map_), size, interpolation=cv2.INTER_NEAREST_EXACT)
        skipped, self._skipped = self._skipped, []
        return {
            "truth": torch.from_numpy(truth.transpose(2, 0, 1).copy()),
            "degraded": torch.from_numpy(seen.transpose(2, 0, 1).copy()),
            "mask": torch.from_numpy(map_),
            "position": position,
            "name": name,
            "skipped": skipped,
        }


def warp(
    image: np.ndarray, map_: np.ndarray, rule: ParserConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Turn, zoom and shift both alike. What lies outside is mirrored, or one colour and background, evenly often."""
    size = image.shape[0]
    angle, zoom = rng.uniform(-rule.turn, rule.turn), np.exp(rng.uniform(-1, 1) * np.log(rule.zoom))
    shift, fill = rng.uniform(-rule.shift, rule.shift, 2) * size, rng.integers(0, 256, 3)
    mirrored, black = rng.uniform(size=2) < 0.5
    matrix = cv2.getRotationMatrix2D(((size - 1) / 2, (size - 1) / 2), angle, zoom)
    matrix[:, 2] += shift
    border = cv2.BORDER_REFLECT_101 if mirrored else cv2.BORDER_CONSTANT
    colour = (0, 0, 0) if black else tuple(int(v) for v in fill)
    image = cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=border, borderValue=colour)
    map_ = cv2.warpAffine(map_, matrix, (size, size), flags=cv2.INTER_NEAREST, borderMode=border, borderValue=0)
    return image, map_


def recolour(image: np.ndarray, rule: ParserConfig, rng: np.random.Generator) -> np.ndarray:
    """Another exposure, contrast, gamma and white balance; gray at times. uint8 in and out."""
    gain, lift, gamma = 1 + rng.uniform(-1, 1, 3) * rule.colour
    tint, gray = 1 + rng.uniform(-0.5, 0.5, 3) * rule.colour, rng.uniform() < rule.gray
    levels = np.arange(256, dtype=np.float64)[:, None] / 255
    table = (levels**gamma - 0.5) * gain + 0.5 + (lift - 1) / 2
    table = np.rint(np.clip(table * tint, 0, 1) * 255).astype(np.uint8)
    out = cv2.LUT(np.ascontiguousarray(image), table[None])
    return np.repeat(cv2.cvtColor(out, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2) if gray else out


def cover(
    image: np.ndarray, map_: np.ndarray, rule: ParserConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Sometimes an ellipse or a box of one colour in front of the face: background, as hands are in CelebAMask-HQ."""
    drawn, size = rng.uniform(size=6), image.shape[0]
    colour = tuple(int(v) for v in rng.integers(0, 256, 3))
    if drawn[0] >= rule.cover:
        return image, map_
    centre = (round(drawn[1] * size), round(drawn[2] * size))
    axes = (round((0.05 + 0.2 * drawn[3]) * size), round((0.05 + 0.2 * drawn[4]) * size))
    image, map_ = image.copy(), map_.copy()
    for canvas, value in ((image, colour), (map_, 0)):
        if drawn[5] < 0.5:
            cv2.ellipse(canvas, centre, axes, drawn[5] * 360, 0, 360, value, -1)
        else:
            low, high = (centre[0] - axes[0], centre[1] - axes[1]), (centre[0] + axes[0], centre[1] + axes[1])
            cv2.rectangle(canvas, low, high, value, -1)
    return image, map_


def parsing_data(config: TrainConfig) -> ParsingDataset:
    """What stage ``parser`` trains on."""
    return ParsingDataset(config.data, config.degradation, config.parser, config.seed)


def held_out(config: TrainConfig) -> Mapping[str, Any]:
    """The first ``val_images`` held-out pairs as they are, for validation and sample grids."""
    source = config.val if config.val.roots else replace(config.data, split="val", limit=0)
    dataset = ParsingDataset(replace(source, size=config.data.size), config.degradation, config.parser, config.seed)
    return collate([dataset.plain(i) for i in range(min(dataset.count(), config.val_images))])
