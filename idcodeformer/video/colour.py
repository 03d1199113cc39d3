"""Decoded frames <-> RGB arrays, by the clip's own matrix and range, so that an untouched frame stays as it is.

Tags follow ITU-T H.273: a matrix of 1 is BT.709, 5 and 6 BT.601, 9 and 10 BT.2020. A clip without tags is taken for
BT.709 from 720 lines on and for BT.601 below, as players do; its result stays without tags.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

_MATRIX = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}  # H.273 -> the scaler's table
_UNSPECIFIED = 2
_HD_LINES = 720
_LIMITED, _FULL = 1, 2
_CHROMA_FULL = 0x2000 | 0x4000 | 0x40000 | 4  # chroma at every pixel both ways, exact rounding, bicubic


@dataclass(frozen=True)
class Colour:
    """How numbers of a clip stand for colours; H.273's numbers, 2 or 0 where the clip does not say."""

    matrix: int = _UNSPECIFIED
    primaries: int = _UNSPECIFIED
    transfer: int = _UNSPECIFIED
    range: int = 0  # 1 limited, 2 full

    def table(self, height: int) -> int:
        """The scaler's matrix for a picture of ``height`` lines."""
        return _MATRIX.get(self.matrix, 1 if height >= _HD_LINES else 5)


def to_rgb(frame: Any, colour: Colour, deep: bool) -> np.ndarray:
    """[H,W,3] uint8, or uint16 where ``deep``, of a decoded frame as it is stored (not turned)."""
    table = colour.table(frame.height)
    wanted = "rgb48le" if deep else "rgb24"
    full = colour.range == _FULL or frame.format.name.startswith("yuvj") or frame.format.is_rgb
    rgb = frame.reformat(
        format=wanted, src_colorspace=table, dst_colorspace=table, src_color_range=_FULL if full else _LIMITED,
        dst_color_range=_FULL, interpolation=_CHROMA_FULL,
    )  # fmt: skip
    return rgb.to_ndarray()


def from_rgb(pixels: np.ndarray, pix_fmt: str, colour: Colour) -> Any:
    """A frame in ``pix_fmt`` of [H,W,3] uint8 or uint16."""
    from .library import pyav

    av = pyav()
    source = "rgb24" if pixels.dtype == np.uint8 else "rgb48le"
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=source)
    table = colour.table(pixels.shape[0])
    out_full = colour.range == _FULL or av.VideoFormat(pix_fmt).is_rgb
    out = frame.reformat(
        format=pix_fmt, src_colorspace=table, dst_colorspace=table, src_color_range=_FULL,
        dst_color_range=_FULL if out_full else _LIMITED, interpolation=_CHROMA_FULL,
    )  # fmt: skip
    # ProRes writes what its frames say, not what its encoder was told.
    out.colorspace, out.color_range = colour.matrix, colour.range
    out.color_primaries, out.color_trc = colour.primaries, colour.transfer
    return out
