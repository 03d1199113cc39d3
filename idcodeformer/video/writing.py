"""Restored frames -> segments -> the final clip, which appears whole or not at all.

A segment is a Matroska file of encoded frames and, written last, a list of their exact times: Matroska rounds to
milliseconds. The encoder starts anew with every segment, so that segments can be joined by copying packets.
"""
from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadClip
from ..files.writing import write_bytes
from .codecs import CODECS, stream_codec, supported
from .colour import from_rgb
from .library import pyav
from .reading import ClipInfo

_SHAPED = ("h264", "hevc")  # streams that tell the aspect of their pixels themselves; PyAV cannot tell Matroska
COPIED = ("audio", "subtitle", "attachment")


@dataclass(frozen=True)
class Encoding:
    """Everything that an encoder is told."""

    codec: str  # in CODECS
    crf: float | None
    pix_fmt: str
    size: tuple[int, int]  # height, width


class SegmentWriter:
    """Encodes one segment. ``close`` makes it count; a segment that was not closed is not there."""

    def __init__(self, folder: Path, number: int, info: ClipInfo, encoding: Encoding):
        av = pyav()
        self.file, self.times = folder / f"{number:06d}.mkv", folder / f"{number:06d}.json"
        self.info, self.encoding = info, encoding
        self._lengths: dict[int, int] = {}
        self._packets: list[int] = []
        codec = CODECS[encoding.codec]
        options = dict(codec.settings)
        if codec.crf is not None:
            options["crf"] = f"{codec.crf if encoding.crf is None else encoding.crf:g}"
        self._out = av.open(str(self.file), "w", format="matroska")
        self._stream = self._out.add_stream(codec.encoder, rate=info.rate.limit_denominator(1 << 16), options=options)
        self._stream.height, self._stream.width = encoding.size
        self._stream.pix_fmt = encoding.pix_fmt
        self._stream.codec_context.time_base = self._base = info.time_base
        _set_shape(self._stream.codec_context, info)

    def write(self, pixels: np.ndarray, pts: int, duration: int) -> None:
        """The next frame: [H,W,3] uint8 or uint16, with its time and length in units of the clip's time base."""
        if pixels.shape[:2] != self.encoding.size:
            raise ValueError(f"a frame of {pixels.shape[:2]} in a clip of {self.encoding.size}")
        frame = from_rgb(pixels, self.encoding.pix_fmt, self.info.colour)
        frame.pts, frame.time_base, frame.duration = pts, self._base, duration
        self._lengths[pts] = duration
        self._mux(self._stream.encode(frame))

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            exact = packet.pts * packet.time_base / self._base
            self._packets.append(min(self._lengths, key=lambda pts: abs(pts - exact)) if self._lengths else 0)
            try:
                self._out.mux(packet)
            except OSError as error:
                raise BadClip(f"{self.file} cannot be written ({error.strerror}); free space.") from error

    def close(self, state: dict[str, Any] | None = None) -> None:
        """Finish the segment; ``state`` is kept with it."""
        self._mux(self._stream.encode())
        self._out.close()
        with self.file.open("rb+") as stream:
            os.fsync(stream.fileno())
        times = [[pts, self._lengths[pts]] for pts in self._packets]
        write_bytes(self.times, json.dumps({"times": times, "state": state or {}}).encode(), overwrite=True)

    def drop(self) -> None:
        """Give the segment up."""
        with suppress(OSError, ValueError):
            self._out.close()
        self.file.unlink(missing_ok=True)


def _set_shape(context: Any, info: ClipInfo) -> None:
    """Pixel aspect and colour tags; what the clip does not say stays unsaid."""
    context.sample_aspect_ratio = info.aspect
    colour = info.colour
    named = {"colorspace": colour.matrix, "color_primaries": colour.primaries, "color_trc": colour.transfer}
    for name, value in named.items():
        if value not in (0, 2):
            setattr(context, name, value)
    context.color_range = colour.range


def finished(folder: Path) -> list[dict[str, Any]]:
    """What ``close`` wrote, of every segment from the first on without a gap."""
    segments: list[dict[str, Any]] = []
    while True:
        times = folder / f"{len(segments):06d}.json"
        if not times.exists() or not times.with_suffix(".mkv").exists():
            return segments
        segments.append(json.loads(times.read_bytes()))


def join(
    folder: Path, target: Path, info: ClipInfo, muxer: str, overwrite: bool = False,
    span: tuple[float, float] | None = None, progress: Callable[[int], None] | None = None, comment: str = "",
) -> list[str]:  # fmt: skip
    """Write ``target`` of all segments in ``folder`` with everything else that the source clip holds.

    ``span`` (start, end) in seconds: what lies outside is left out and time starts at 0. ``comment`` is added to the
    clip's own. Returns what could not be kept, in words. Raises BadClip; then nothing is written.
    """
    if target.exists() and not overwrite:
        raise BadClip(f"{target} exists already; add --overwrite, or name another output folder.")
    av = pyav()
    temporary = target.with_name(f".{target.stem[:40]}.{secrets.token_hex(6)}.partial")
    options = {"movflags": "+faststart"} if muxer in ("mp4", "mov") else {}
    notes: list[str] = []
    try:
        sequence = info.path.is_dir()  # pictures, with nothing beside them
        opened = nullcontext(None) if sequence else av.open(str(info.path))
        with opened as source, av.open(str(temporary), "w", format=muxer, options=options) as out:
            _join(folder, source, out, info, muxer, span, notes, progress, comment)
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except (OSError, av.error.FFmpegError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise BadClip(f"{target} cannot be written ({why}); free space, or choose another container.") from error
    finally:
        temporary.unlink(missing_ok=True)
    return notes


def _join(folder: Path, source: Any, out: Any, info: ClipInfo, muxer: str, span: Any, notes: list[str],
          progress: Any, comment: str) -> None:  # fmt: skip
    segments = finished(folder)
    av = pyav()
    with av.open(str(folder / "000000.mkv")) as first:
        video = out.add_stream_from_template(first.streams.video[0], opaque=True)
    video.time_base = info.time_base
    _set_shape(video.codec_context, info)
    if info.aspect != 1 and muxer in ("matroska", "webm") and video.codec_context.codec.canonical_name not in _SHAPED:
        notes.append(f"its pixels' aspect of {info.aspect} is not told by {muxer}; take --codec h264 or h265")
    shift = Fraction(0) if span is None else Fraction(span[0])
    others: Iterator[tuple[Fraction, Any, Any]] = iter(())
    if source is not None:
        brand = ("encoder", "major_brand", "minor_version", "compatible_brands")  # of the source's muxer
        out.metadata.update({k: v for k, v in source.metadata.items() if k not in brand})
        _tell(video, source.streams.video[0])
        copied = _copied(source, out, supported(muxer), notes)
        _set_chapters(source, out, span)
        others = _others(source, copied, span)
    if comment:
        out.metadata["comment"] = "; ".join(filter(None, (out.metadata.get("comment", ""), comment)))
    waiting = next(others, None)
    for packet in _video(folder, segments, video, info, shift):
        now = packet.dts * info.time_base
        while waiting is not None and waiting[0] - shift <= now:
            _copy(out, *waiting, shift)
            waiting = next(others, None)
        out.mux(packet)
        if progress:
            progress(1)
    while waiting is not None:
        _copy(out, *waiting, shift)
        waiting = next(others, None)


def _tell(stream: Any, source: Any) -> None:
    # Lengths and tools of the source stream are not the result's.
    kept = {k: v for k, v in source.metadata.items() if k not in ("encoder", "vendor_id") and not k.startswith(
        ("BPS", "DURATION", "NUMBER_OF", "_STATISTICS"))}  # fmt: skip
    stream.metadata.update(kept)
    with suppress(AttributeError, TypeError, ValueError):
        stream.disposition = source.disposition


def _copied(source: Any, out: Any, codecs: set[str], notes: list[str]) -> dict[int, Any]:
    copied: dict[int, Any] = {}
    for stream in source.streams:
        if stream.type == "video":
            if stream.index != source.streams.video[0].index:
                notes.append(f"video stream {stream.index} beside the first is left out")
            continue
        name = stream_codec(stream)
        if stream.type == "data" and source.chapters():
            continue  # QuickTime's chapters are a stream of their own, which is made anew
        if stream.type == "attachment" and out.format.name != "matroska":
            notes.append(f"its attachment {stream.index} is left out: {out.format.name} holds none")
        elif stream.type not in COPIED or (stream.type != "attachment" and name not in codecs):
            notes.append(f"its {stream.type} stream {stream.index} ({name}) is left out: {out.format.name} holds none")
        else:
            copied[stream.index] = out.add_stream_from_template(stream)
            if stream.type != "attachment":
                copied[stream.index].time_base = stream.time_base
            _tell(copied[stream.index], stream)
    return copied


def _video(folder: Path, segments: list[dict[str, Any]], stream: Any, info: ClipInfo,
           shift: Fraction) -> Iterator[Any]:  # fmt: skip
    """The packets of all segments with their exact times and decoding times that rise throughout."""
    av = pyav()
    moved = round(shift / info.time_base)
    shown = [pts for segment in segments for pts, _ in segment["times"]]
    ordered = [pts for segment in segments for pts in sorted(pts for pts, _ in segment["times"])]
    delay = max((at - pts for at, pts in zip(ordered, shown)), default=0)
    number = 0
    for index, segment in enumerate(segments):
        with av.open(str(folder / f"{index:06d}.mkv")) as part:
            inside = part.streams.video[0]
            packets = (packet for packet in part.demux(inside) if packet.size)
            for packet, (pts, duration) in zip(packets, segment["times"], strict=True):
                packet.stream, packet.time_base = stream, info.time_base
                packet.pts, packet.dts, packet.duration = pts - moved, ordered[number] - delay - moved, duration
                number += 1
                yield packet


def _others(source: Any, copied: dict[int, Any], span: Any) -> Iterator[tuple[Fraction, Any, Any]]:
    """(time in seconds, packet, its stream in the result) of everything that is copied."""
    av = pyav()
    wanted = [source.streams[index] for index, stream in copied.items() if stream.type != "attachment"]
    if not wanted:
        return
    if span is not None and span[0] > 0:
        source.seek(int(span[0] * 1_000_000), backward=True)
    packets = source.demux(wanted)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:  # where the source breaks off; its pictures ended there too
            return
        if packet is None:
            return
        if packet.dts is None or not packet.size:
            continue
        time = packet.dts * packet.time_base
        if span is None or span[0] <= time < span[1]:
            yield time, packet, copied[packet.stream_index]


def _copy(out: Any, time: Fraction, packet: Any, stream: Any, shift: Fraction) -> None:
    base = packet.time_base
    moved = round(shift / base)
    packet.pts = None if packet.pts is None else packet.pts - moved
    packet.dts -= moved
    packet.stream = stream
    out.mux(packet)


def _set_chapters(source: Any, out: Any, span: Any) -> None:
    chapters = source.chapters()
    if span is not None:
        kept = []
        for chapter in chapters:
            base = chapter["time_base"]
            low = Fraction(span[0]) / base
            high = chapter["end"] if span[1] == float("inf") else Fraction(span[1]) / base
            start, end = max(chapter["start"], low), min(chapter["end"], high)
            if start < end:
                kept.append(chapter | {"start": int(start - low), "end": int(end - low)})
        chapters = kept
    if chapters:
        out.set_chapters(chapters)
