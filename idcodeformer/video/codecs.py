"""Which encoder, pixel format and container a clip is written with."""
from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from ..errors import BadClip, BadOption
from .library import pyav
from .reading import ClipInfo


@dataclass(frozen=True)
class Codec:
    """An encoder: its name in FFmpeg, that of its stream, its default quality (CRF) and worst, and its settings."""

    encoder: str
    stream: str
    crf: int | None
    worst: int
    settings: dict[str, str]
    endings: tuple[str, ...]  # containers it is commonly found in


# Quality: x264's and x265's guides call 17 to 18 visually lossless; a restored face is worth a step more.
CODECS: dict[str, Codec] = {
    "h264": Codec("libx264", "h264", 16, 51, {"preset": "fast"}, (".mp4", ".m4v", ".mov", ".mkv", ".3gp", ".ts")),
    "h265": Codec(
        "libx265", "hevc", 18, 51, {"preset": "fast", "x265-params": "log-level=none"}, (".mp4", ".mov", ".mkv", ".ts")
    ),
    "av1": Codec("libsvtav1", "av1", 22, 63, {"preset": "8"}, (".mp4", ".mkv", ".webm")),
    "ffv1": Codec("ffv1", "ffv1", None, 0, {"level": "3", "slicecrc": "1"}, (".mkv", ".nut")),
    "prores": Codec("prores_ks", "prores", None, 0, {"profile": "hq", "vendor": "apl0"}, (".mov", ".mkv")),
}
_ALIASES = {"hevc": "h265", "libdav1d": "av1", "libaom-av1": "av1", "vp9": "av1", "vp8": "av1", "libvpx-vp9": "av1"}
_MUXERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".ts": "mpegts",
           ".nut": "nut", ".3gp": "3gp"}  # fmt: skip
_SVT_SMALLEST = 64  # px; SVT-AV1 refuses smaller pictures


def codec_for(name: str | None, info: ClipInfo) -> str:
    """The name in CODECS: as asked, or the clip's own where it is one of them, or H.264."""
    if name is None:
        own = _ALIASES.get(info.codec, info.codec)
        return own if own in CODECS else "h264"
    if name not in CODECS:
        raise BadOption(f"codec is {name!r}; choose one of {', '.join(CODECS)}.")
    return name


def check(name: str, crf: float | None, size: tuple[int, int]) -> None:
    """Raise BadOption for a quality the codec has not, BadClip where this PyAV has no such encoder."""
    av, codec = pyav(), CODECS[name]
    if crf is not None and (codec.crf is None or not 0 <= crf <= codec.worst):
        kept = f"0 (lossless or best) to {codec.worst}" if codec.crf is not None else "none: it has no such setting"
        raise BadOption(f"--crf is {crf:g}; {name} takes {kept}.")
    if codec.encoder not in av.codecs_available:
        raise BadClip(f"This PyAV has no encoder {codec.encoder}; choose another --codec, or: pip install -U av")
    if name == "av1" and min(size) < _SVT_SMALLEST:
        raise BadOption(f"av1 takes pictures from {_SVT_SMALLEST} px on; choose --codec h264 or ffv1.")


def pixel_format(name: str, info: ClipInfo, size: tuple[int, int]) -> str:
    """The encoder's format nearest to the clip's: its depth, its chroma, and no chroma that would cut odd sizes."""
    av = pyav()
    there = {known.name for known in av.codec.Codec(CODECS[name].encoder, "w").video_formats or ()}
    source = av.VideoFormat(info.pix_fmt)
    chroma = "444" if source.is_rgb else _chroma(source)
    odd_height, odd_width = size[0] % 2, size[1] % 2
    order = {"420": ("420", "422", "444"), "422": ("422", "444", "420"), "444": ("444", "422", "420")}[chroma]
    if name in ("h264", "h265", "prores"):
        unfit = {"420": odd_height or odd_width, "422": odd_width, "444": False}
        order = tuple(part for part in order if not unfit[part]) or ("444",)
    depths = {8: ("", "10le"), 10: ("10le", "12le", "16le"), 12: ("12le", "16le", "10le")}
    for depth in (*depths.get(info.bits, ("16le", "12le", "10le")), "10le", ""):
        for part in order:
            if f"yuv{part}p{depth}" in there:
                return f"yuv{part}p{depth}"
    raise BadClip(f"{name} cannot hold {info.pix_fmt}; choose another --codec.")


def _chroma(source: Any) -> str:
    if len(source.components) < 3:
        return "420"  # gray
    wide, high = source.chroma_width(4), source.chroma_height(4)
    return "444" if wide == 4 else "422" if high == 4 else "420"


def container_for(ending: str, name: str, copied: list[Named]) -> tuple[str, str, str]:
    """(ending, muxer, note) of the result: the source's container where it holds codec and copied streams, else mkv."""
    wanted = ending.lower()
    streams = [stream.codec for stream in copied if stream.type != "attachment"]
    if wanted in CODECS[name].endings and wanted in _MUXERS and _holds(_MUXERS[wanted], streams):
        return wanted, _MUXERS[wanted], ""
    for other in (".mov",) if name == "prores" else (".mp4",) if wanted == ".avi" else ():
        if _holds(_MUXERS[other], streams):
            return other, _MUXERS[other], f"written as {other}, since {ending} does not hold {name}"
    note = f"written as .mkv, since {ending or 'its own kind'} does not hold {name} with its other streams"
    return ".mkv", "matroska", note


@dataclass(frozen=True)
class Named:
    """A stream that is copied: "audio", "subtitle" or "attachment", and its codec."""

    type: str
    codec: str


def stream_codec(stream: Any) -> str:
    """The codec's own name, whichever decoder reads it ("mp3" where that is mp3float)."""
    if stream.codec_context is None:
        return stream.type
    return getattr(stream.codec_context.codec, "canonical_name", stream.codec_context.name)


def _holds(muxer: str, streams: list[str]) -> bool:
    return set(streams) <= supported(muxer)


def supported(muxer: str) -> set[str]:
    """The codecs that a container of this kind takes."""
    av = pyav()
    with av.open(io.BytesIO(), "w", format=muxer) as container:
        return set(container.supported_codecs)
