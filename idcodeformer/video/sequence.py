"""Frames that are no clip file: the pictures of a folder in the order of their names, or frames in memory."""
from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from ..errors import BadClip
from ..files.finding import find_pictures
from ..files.reading import read
from .colour import Colour
from .reading import ClipInfo, Frame, to_pixels


def _info(path: Path, size: tuple[int, int], rate: Fraction, count: int, bits: int) -> ClipInfo:
    return ClipInfo(path, size, rate, 1 / rate, float(count / rate), count, "",
                    "rgb24" if bits == 8 else "rgb48le", bits, Colour(), Fraction(1), 0, "")  # fmt: skip


def _counted(file: Path) -> list[int | str]:
    """Names in the order of their numbers: 2 comes before 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", file.name)]


@dataclass
class FrameFolder:
    """The pictures of a folder as the frames of one clip, ``rate`` a second. Raises BadClip and BadImage."""

    path: Path
    rate: Fraction = Fraction(25)
    broken: str = ""
    info: ClipInfo = field(init=False)

    def __post_init__(self) -> None:
        files = [file for file, _ in find_pictures([self.path])]
        self._files = sorted(files, key=_counted)
        first = read(self._files[0])
        self.info = _info(Path(self.path), tuple(first.size), self.rate, len(files), 16 if first.bits == 16 else 8)

    def frames(self, first: int = 0, start_pts: int | None = None, stop_pts: int | None = None) -> Iterator[Frame]:
        """As ``Clip.frames``; a picture is shown for one unit of time."""
        begin = start_pts or 0
        files = self._files[begin : len(self._files) if stop_pts is None else stop_pts]
        for number, file in enumerate(files):
            picture = read(file)
            if tuple(picture.size) != self.info.size:
                raise BadClip(f"{file} is {picture.size[1]}x{picture.size[0]} px, and the first frame is another size; "
                              "scale the frames to one size.")  # fmt: skip
            yield Frame(first + number, begin + number, 1, to_pixels(picture.frames[0], self.info.bits > 8))


@dataclass
class MemoryClip:
    """Frames that lie in memory: ``get(number)`` gives [H,W,3] uint8 or uint16 of one of ``count``."""

    get: Callable[[int], np.ndarray]
    count: int
    size: tuple[int, int]
    rate: Fraction
    bits: int = 8
    broken: str = ""
    info: ClipInfo = field(init=False)

    def __post_init__(self) -> None:
        self.info = _info(Path(), self.size, self.rate, self.count, self.bits)

    def frames(self, first: int = 0, start_pts: int | None = None, stop_pts: int | None = None) -> Iterator[Frame]:
        """As ``Clip.frames``."""
        begin, end = start_pts or 0, self.count if stop_pts is None else min(stop_pts, self.count)
        for number in range(begin, end):
            yield Frame(first + number - begin, number, 1, self.get(number))
