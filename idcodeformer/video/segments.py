"""Restored frames into segments of some seconds, each whole once it is on disk: what a killed run keeps."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..batch.outcome import COMPARE
from .analysis import Source
from .reading import Frame
from .second_pass import RestoredFrame
from .writing import Encoding, SegmentWriter

_SEGMENT = 4.0  # seconds; what a killed run loses at most, and the distance of key frames


class Segments:
    """Takes restored frames in order and writes them into segments."""

    def __init__(self, folder: Path, number: int, source: Source, encoding: Encoding, compare: bool):
        self.folder, self.number, self.source, self.encoding = folder, number, source, encoding
        self.compare = folder / COMPARE if compare else None
        self.length = max(1, round(_SEGMENT * float(source.info.rate)))
        self._writers: list[SegmentWriter] = []
        self._lines: list[dict[str, Any]] = []
        self._count = 0

    def take(self, frame: RestoredFrame) -> None:
        if not self._writers:
            self._open()
        source = frame.source
        self._writers[-1].write(frame.pixels, source.pts, source.duration)
        if self.compare:
            self._writers[0].write(_beside(source, frame.pixels), source.pts, source.duration)
        self._lines += frame.lines
        self._count += 1
        if self._count == self.length:
            self._finish()

    def _open(self) -> None:
        info, (height, width) = self.source.info, self.encoding.size
        if self.compare:
            self.compare.mkdir(exist_ok=True)
            wide = replace(self.encoding, size=(height, 2 * width))
            self._writers.append(SegmentWriter(self.compare, self.number, info, wide))
        self._writers.append(SegmentWriter(self.folder, self.number, info, self.encoding))

    def _finish(self) -> None:
        for writer in self._writers:  # the clip itself last: its list makes the segment count
            writer.close({"lines": self._lines})
        self._writers, self._lines, self._count = [], [], 0
        self.number += 1

    def close(self, well: bool) -> None:
        if well and self._writers:
            self._finish()
        for writer in self._writers:
            writer.drop()


def _beside(source: Frame, result: np.ndarray) -> np.ndarray:
    """[H,2W,3]: the frame before, enlarged to the size of the result, and the result."""
    import cv2

    before = source.pixels
    if before.shape != result.shape:
        before = cv2.resize(before, result.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return np.concatenate([before, result], 1)
