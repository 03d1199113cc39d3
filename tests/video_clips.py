"""Small clips made on the spot: moving stripes with sound, chapters and all that a container may hold."""
from __future__ import annotations

from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BASE = Fraction(1, 12800)  # of the timestamps
STEPS = (700, 512, 512)  # units of BASE between frames: a variable frame rate


def picture(number: int, size: tuple[int, int]) -> np.ndarray:
    """Frame ``number``: soft stripes that move, [H,W,3] uint8."""
    y, x = np.mgrid[: size[0], : size[1]]
    waves = 60 * np.sin((x + 2 * number) / 9)[..., None] * np.array([1, 0.5, -0.7]) + 40 * np.sin(y / 7)[..., None]
    return np.clip(128 + waves, 0, 255).astype(np.uint8)


def make_clip(
    path: Path,
    frames: list[np.ndarray] | int = 20,
    size: tuple[int, int] = (64, 96),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    audio: str | None = "aac",
    turn: int = 0,
    tags: tuple[int, int, int, int] = (1, 1, 1, 1),
    aspect: Fraction = Fraction(1),
    steady: bool = False,
) -> list[int]:
    """Write a clip; returns the time of every frame in units of BASE. ``tags``: matrix, primaries, transfer, range."""
    pictures = [picture(n, size) for n in range(frames)] if isinstance(frames, int) else frames
    times: list[int] = []
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25, options={"crf": "4"} if codec.startswith("libx26") else {})
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], pix_fmt
        context = stream.codec_context
        context.time_base = BASE if codec != "mpeg4" else Fraction(1, 25)
        context.colorspace, context.color_primaries, context.color_trc, context.color_range = tags
        context.sample_aspect_ratio = aspect
        if turn:
            stream.set_display_rotation(turn)
        out.metadata["title"] = "A clip"
        sound = out.add_stream(audio, rate=48000) if audio else None
        if sound is not None:
            sound.layout = "mono"
            sound.metadata["language"] = "eng"
        chapters = [(0, 400, "one"), (400, 800, "two")]
        if path.suffix in (".mp4", ".mkv", ".mov"):
            out.set_chapters([{"id": n, "start": a, "end": b, "time_base": Fraction(1, 1000), "metadata": {"title": t}}
                              for n, (a, b, t) in enumerate(chapters)])  # fmt: skip
        pts = 0
        for number, pixels in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(
                format=pix_fmt, dst_colorspace=1 if tags[0] == 1 else 5
            )
            frame.pts, frame.time_base = (pts, BASE) if codec != "mpeg4" else (number, Fraction(1, 25))
            times.append(pts)
            pts += 512 if steady else STEPS[number % 3]
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        if sound is not None:
            for number in range(round(pts * BASE * 48000 / 1024)):
                wave = (0.3 * np.sin(np.arange(1024) / 10 + number)).astype(np.float32)[None]
                part = av.AudioFrame.from_ndarray(wave, "fltp", "mono")
                part.sample_rate, part.pts = 48000, number * 1024
                out.mux(sound.encode(part))
            out.mux(sound.encode())
    return times


def with_more_streams(path: Path) -> None:
    """Write a Matroska clip of ``make_clip`` with a second sound and subtitles, in languages of their own."""
    first, second, words = (path.with_name(f"{path.stem}_{name}") for name in ("first.mkv", "second.mkv", "words.srt"))
    make_clip(first)
    make_clip(second, audio="libopus")
    words.write_text("1\n00:00:00,100 --> 00:00:00,300\nHello\n\n2\n00:00:00,400 --> 00:00:00,700\nthere\n")
    kinds = ((first, "video", ""), (first, "audio", ""), (second, "audio", "deu"), (words, "subtitles", "fra"))
    with av.open(str(path), "w") as out, ExitStack() as opened:
        packets = []
        for source, kind, language in kinds:
            box = opened.enter_context(av.open(str(source)))
            stream = getattr(box.streams, kind)[0]
            copy = out.add_stream_from_template(stream)
            copy.metadata.update({"language": language} if language else {})
            for packet in box.demux(stream):
                if packet.size:
                    packet.stream = copy
                    packets.append(packet)
        out.mux(packets)
