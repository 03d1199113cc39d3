"""A clip as a stream of upright RGB frames with their own timestamps; nothing but the frame in hand is in memory."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import BadClip
from .colour import Colour, to_rgb
from .library import pyav

_TOLD_RATE = Fraction(25)  # frames a second of a clip that does not say
_MISSING = 0.02  # of the length that a clip tells; what lacks more than this broke off
_DAMAGED = 500  # packets in a row that cannot be decoded before the rest is given up


@dataclass(frozen=True)
class ClipInfo:
    """What a clip is. Sizes are those that are seen, after turning."""

    path: Path
    size: tuple[int, int]  # height, width in px
    rate: Fraction  # frames a second on average
    time_base: Fraction  # seconds, the unit of every timestamp
    duration: float  # seconds; 0 where unknown
    count: int  # frames, as far as the clip tells; 0 where unknown
    codec: str
    pix_fmt: str
    bits: int  # per channel
    colour: Colour
    aspect: Fraction  # width of a pixel over its height
    turn: int  # quarter turns counter-clockwise that make a stored frame upright
    container: str
    notes: tuple[str, ...] = ()  # what is not kept


@dataclass(frozen=True, eq=False)
class Frame:
    """One upright frame: pixels [H,W,3] uint8 or uint16, its time and length in units of the clip's time base."""

    index: int
    pts: int
    duration: int
    pixels: np.ndarray

    def tensor(self) -> Tensor:
        """[3,H,W] float32 in [0,1]."""
        return to_tensor(self.pixels)


def to_tensor(pixels: np.ndarray) -> Tensor:
    """[3,H,W] float32 in [0,1] of [H,W,3] uint8 or uint16."""
    top = 255 if pixels.dtype == np.uint8 else 65535
    planes = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32))
    return planes.mul_(1 / top)


def to_pixels(image: Tensor, deep: bool) -> np.ndarray:
    """[H,W,3] uint8, or uint16 where ``deep``, of [3,H,W] in [0,1], rounded."""
    top, kind = (65535, np.uint16) if deep else (255, np.uint8)
    levels = image.detach().cpu().float().clamp(0, 1).mul(top).round_()
    return np.ascontiguousarray(levels.permute(1, 2, 0).numpy().astype(kind))


@dataclass
class Clip:
    """A clip that can be read from its beginning, or from a time on, as often as needed. Raises BadClip."""

    path: Path
    info: ClipInfo = field(init=False)
    broken: str = ""  # why reading ended before the clip did

    def __post_init__(self) -> None:
        self.path = Path(self.path)
        with self._open() as container:
            self.info = _info(self.path, container)

    def _open(self) -> Any:
        av = pyav()
        try:
            return av.open(str(self.path))
        except (OSError, av.error.FFmpegError, ValueError) as error:
            if not self.path.exists():
                raise BadClip(f"{self.path} does not exist; check the path.") from error
            raise BadClip(
                f"{self.path} cannot be read as a clip ({_reason(error)}); it may be cut off or no clip at all. Copy "
                "it again, or convert it with ffmpeg."
            ) from error

    def frames(self, first: int = 0, start_pts: int | None = None, stop_pts: int | None = None) -> Iterator[Frame]:
        """Frames in the order they are shown, numbered from ``first``.

        ``start_pts`` begins with the frame shown at that time, ``stop_pts`` ends before it. A damaged part is passed
        over; where the clip breaks off, ``broken`` says so afterwards.
        """
        self.broken = ""
        with self._open() as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            if start_pts is not None and (stream.start_time is None or start_pts > stream.start_time):
                container.seek(start_pts, stream=stream, backward=True)
            yield from self._numbered(self._decoded(container, stream), first, start_pts, stop_pts)

    def _numbered(self, decoded: Iterator[Any], first: int, start: int | None, stop: int | None) -> Iterator[Frame]:
        length = max(1, round(1 / self.info.rate / self.info.time_base))
        last, number, held = None, first, None
        for raw in decoded:
            pts = raw.pts if raw.pts is not None else raw.dts
            pts = (0 if last is None else last + length) if pts is None else pts
            if last is not None and pts <= last:
                pts = last + 1  # two frames cannot be shown at one time
            last = pts
            if held is not None and (start is None or pts > start):  # else it was gone by then
                yield self._made(held, start, number, pts - held[1])
                number += 1
            held = (raw, pts)
            if stop is not None and pts >= stop:
                return
        if held is not None:
            duration = held[0].duration or length
            if start is None or held[1] + duration > start:  # else the clip ended before
                yield self._made(held, start, number, duration)

    def _made(self, held: tuple[Any, int], start: int | None, number: int, duration: int) -> Frame:
        raw, pts = held
        if start is not None and pts < start:
            pts, duration = start, duration - (start - pts)
        pixels = to_rgb(raw, self.info.colour, self.info.bits > 8)
        if self.info.turn:
            pixels = np.rot90(pixels, self.info.turn)
        if pixels.shape[:2] != self.info.size:
            raise BadClip(
                f"{self.path} changes its size to {pixels.shape[1]}x{pixels.shape[0]} px at frame {number}; split it "
                "there with ffmpeg, or end --range before."
            )
        return Frame(number, pts, max(1, int(duration)), np.ascontiguousarray(pixels))

    def _decoded(self, container: Any, stream: Any) -> Iterator[Any]:
        av = pyav()
        wrong, reached = 0, 0.0
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as error:
                self.broken = f"breaks off at {reached:.2f} s ({_reason(error)})"
                return
            if packet is None:
                break
            try:
                for raw in packet.decode():
                    wrong = 0
                    if raw.pts is not None:
                        reached = float(raw.pts * self.info.time_base)
                    yield raw
            except av.error.FFmpegError as error:
                wrong += 1
                if wrong >= _DAMAGED:
                    self.broken = f"cannot be decoded after {reached:.2f} s ({_reason(error)})"
                    return
        begin = float((stream.start_time or 0) * self.info.time_base)
        told = self.info.duration
        if wrong or (told and begin + told - reached > _MISSING * told + 2 / float(self.info.rate) + 0.1):
            self.broken = f"breaks off at {reached - begin:.2f} s of {told:.2f} s"


def _reason(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error)).strip()


def _info(path: Path, container: Any) -> ClipInfo:
    if not container.streams.video:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "no stream"
        raise BadClip(f"{path} holds no video ({kinds}); name a clip with pictures.")
    stream = container.streams.video[0]
    context = stream.codec_context
    first = _first_frame(path, container, stream)
    turn = round(float(first.rotation or 0) / 90) % 4
    size = (first.height, first.width) if turn % 2 == 0 else (first.width, first.height)
    bits = max(part.bits for part in first.format.components)
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if turn % 2 and aspect:
        aspect = 1 / aspect
    notes = []
    if _transparent(stream, first):
        notes.append("its transparency is not kept")
    if getattr(first, "interlaced_frame", False):
        notes.append("its fields are restored together, as whole frames")
    colour = Colour(int(first.colorspace), int(first.color_primaries), int(first.color_trc), int(first.color_range))
    rate = stream.average_rate or stream.guessed_rate or _TOLD_RATE
    duration = stream.duration * stream.time_base if stream.duration else (container.duration or 0) / 1_000_000
    count = stream.frames or round(float(duration) * float(rate))
    return ClipInfo(
        path, size, Fraction(rate), Fraction(stream.time_base), float(duration), int(count),
        context.codec.canonical_name, first.format.name, bits, colour, Fraction(aspect) or Fraction(1), turn,
        container.format.name, tuple(notes),
    )  # fmt: skip


def _transparent(stream: Any, first: Any) -> bool:
    """WebM's VP8 and VP9 hold it beside the picture; GIFs are decoded with it where they have none."""
    if stream.metadata.get("alpha_mode") == "1":
        return True
    if len(first.format.components) not in (2, 4):
        return False
    opaque = stream.codec_context.name == "gif" and first.reformat(format="rgba").to_ndarray()[..., 3].min() == 255
    return not opaque


def _first_frame(path: Path, container: Any, stream: Any) -> Any:
    av = pyav()
    try:
        for packet in container.demux(stream):
            for frame in packet.decode():
                return frame
    except av.error.FFmpegError as error:
        raise BadClip(f"{path}: its video cannot be decoded ({_reason(error)}); convert it with ffmpeg.") from error
    raise BadClip(f"{path} holds a video stream without a frame; copy it again.")


def parse_range(text: str) -> tuple[float, float]:
    """(start, end) in seconds of "START:END", either of which may be left out. Raises BadClip's kin BadOption."""
    from ..errors import BadOption

    start, colon, end = text.partition(":")
    try:
        low, high = float(start or 0), float(end or "inf")
    except ValueError:
        low = high = float("nan")
    if not colon or not 0 <= low < high:
        raise BadOption(f"--range is {text!r}; give START:END in seconds, as in 12.5:20, 12.5: or :20.")
    return low, high
