"""Sheets of samples: the same faces through every row, chosen by seed, and the ten that came out worst."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from idcodeformer.files.pixels import to_levels

from ..config import DegradationConfig
from .evalset import EvalSet
from .subjects import Subject, bound_to

WORST = 10
CELL = 160  # px; smaller faces are enlarged to this
LINE = 14  # px of text height
BLOCKS = 2  # faces side by side


@dataclass(frozen=True, eq=False)
class Sheet:
    """Faces in rows, versions in columns, with what is written above the columns and below each face."""

    name: str  # of the file, without suffix
    title: str
    names: list[str]  # [R] image names
    columns: list[str]  # [C]
    images: list[list[np.ndarray]]  # [R][C], uint8 [S,S,3]
    captions: list[list[str]]  # [R][C], lines separated by \n


def make_sheet(
    name: str, title: str, faces: EvalSet, degradation: DegradationConfig, subjects: Sequence[Subject],
    rows: np.ndarray, sims: Mapping[str, Mapping[str, np.ndarray]], seed: int, device: torch.device,
) -> Sheet:  # fmt: skip
    """The faces ``rows`` through all ``subjects``; ``sims``: recogniser -> row label -> ID-Sim of all images."""
    labels = [row.label for s in subjects for row in s.rows]
    images = []
    for here, truth, degraded in faces.batches(degradation, seed, 1, rows):
        makers = [bound_to(s, here.tolist()) for s in subjects]
        made = [image for maker in makers for image in maker.make(truth.to(device), degraded.to(device))]
        images.append([to_levels(image[0]) for image in made])
    captions = [
        ["\n".join(f"{j}: {by_row[label][r]:.2f}" for j, by_row in sims.items() if label in by_row) for label in labels]
        for r in rows
    ]
    return Sheet(name, title, [faces.name(r) for r in rows], labels, images, captions)


def draw(sheet: Sheet) -> Any:
    """The sheet as a PIL image."""
    from PIL import Image, ImageDraw

    from idcodeformer.files.drawing import font, wrapped

    large, small = font(12), font(11)
    side = max(CELL, min(512, sheet.images[0][0].shape[0]))
    columns = [wrapped(label, small, side) for label in sheet.columns]
    captions = [[wrapped(caption, small, side) for caption in row] for row in sheet.captions]
    gap, head = 8, 30
    step_x, step_y = side + 6, side + _lines(c for row in captions for c in row) * LINE + 10
    top = head + _lines(columns) * LINE + 6
    block = step_x * len(columns) + 2 * gap
    blocks = min(BLOCKS, len(sheet.images))
    height = top + step_y * -(-len(sheet.images) // blocks)
    canvas = Image.new("RGB", (gap + block * blocks, height), "white")
    pen = ImageDraw.Draw(canvas)
    pen.text((gap, 8), sheet.title, fill="black", font=large)
    for b in range(blocks):
        for c, label in enumerate(columns):
            pen.multiline_text((gap + b * block + c * step_x, head), label, fill="black", font=small, spacing=2)
    for number, (images, below) in enumerate(zip(sheet.images, captions, strict=True)):
        left, y = gap + number % blocks * block, top + number // blocks * step_y
        for c, (image, caption) in enumerate(zip(images, below, strict=True)):
            cell = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
            canvas.paste(cell, (left + c * step_x, y))
            pen.multiline_text((left + c * step_x, y + side + 2), caption, fill="black", font=small, spacing=2)
    return canvas


def _lines(texts: Iterable[str]) -> int:
    return max(text.count("\n") + 1 for text in texts)
