"""Where a clip cuts to another shot: from a thumbnail of each frame, in a few numbers a frame."""
from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

_SIZE = (48, 27)  # width, height of the thumbnail
_BINS = 8  # a channel
_HISTOGRAM = 0.35  # share of pixels whose colour went elsewhere, from which on a frame may begin a shot
_LEVELS = 10.0  # mean change of the thumbnail in grey levels, likewise
_JUMP = 3.0  # times the usual change around it
_AROUND = 8  # frames on each side that tell what is usual
_FLASH = 0.5  # of the change: a frame that differs from both neighbours while these agree this well is a flash


@dataclass
class Shots:
    """Fed every frame in order; keeps three numbers of each."""

    change: list[float] = field(default_factory=list)  # from the frame before, grey levels
    across: list[float] = field(default_factory=list)  # from the frame before that
    colours: list[float] = field(default_factory=list)  # 0..1, histogram distance from the frame before
    _last: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def go_on(self, pixels: np.ndarray, frames: int) -> None:
        """Keep what is known of the first ``frames`` frames, the last of which is ``pixels``."""
        for numbers in (self.change, self.across, self.colours):
            del numbers[max(0, frames - 1) :]
        self.add(pixels)

    def add(self, pixels: np.ndarray) -> bool:
        """[H,W,3] uint8 or uint16 of the next frame; True where it may begin a shot, as far as is known by now."""
        import cv2

        small = cv2.resize(pixels, _SIZE, interpolation=cv2.INTER_AREA).astype(np.float32)
        small = small / 257 if pixels.dtype == np.uint16 else small
        bins = (small / (256 / _BINS)).astype(np.int64).clip(0, _BINS - 1) @ np.array([_BINS * _BINS, _BINS, 1])
        histogram = np.bincount(bins.ravel(), minlength=_BINS**3) / bins.size
        first = not self._last
        before = self._last[-1] if self._last else (small, histogram)
        earlier = self._last[0] if self._last else (small, histogram)
        self.change.append(float(np.abs(small - before[0]).mean()))
        self.across.append(float(np.abs(small - earlier[0]).mean()))
        self.colours.append(float(np.abs(histogram - before[1]).sum() / 2))
        self._last = [*self._last[-1:], (small, histogram)]
        return not first and self._differs(len(self.change) - 1)

    def _differs(self, frame: int) -> bool:
        return self.colours[frame] > _HISTOGRAM and self.change[frame] > _LEVELS

    def cuts(self) -> list[int]:
        """Frames that begin a shot, the first excepted."""
        found = []
        for frame in range(1, len(self.change)):
            if not self._differs(frame):
                continue
            low, high = max(1, frame - _AROUND), frame + _AROUND + 1
            around = self.change[low:frame] + self.change[frame + 1 : high]
            if self.change[frame] < _JUMP * float(np.median(around or [0.0])):
                continue
            out = frame + 1 < len(self.change) and self._flash(frame + 1)
            if not out and not self._flash(frame):
                found.append(frame)
        return found

    def _flash(self, frame: int) -> bool:
        """Whether the frame before this one is a flash: this one goes back to what was before it."""
        return self.across[frame] < _FLASH * min(self.change[frame], self.change[frame - 1])
