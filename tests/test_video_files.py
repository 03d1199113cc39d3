"""Clips in and out: timing, colours, sound and all else that a file holds come through; what breaks off is told."""
from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av")

from video_clips import BASE, make_clip, with_more_streams  # noqa: E402

from idcodeformer.errors import BadClip, BadOption  # noqa: E402
from idcodeformer.video import codecs, writing  # noqa: E402
from idcodeformer.video.reading import Clip, parse_range  # noqa: E402


def through(source: Path, codec: str | None = None, crf: float | None = None, span=None):
    """The clip read, written in segments of seven frames and joined: (result, frames read, notes)."""
    clip = Clip(source)
    info = clip.info
    name = codecs.codec_for(codec, info)
    with av.open(str(source)) as opened:
        copied = [codecs.Named(s.type, codecs.stream_codec(s)) for s in opened.streams if s.type in writing.COPIED]
        ending, muxer, note = codecs.container_for(source.suffix, name, copied)
    folder = source.parent / f"parts_{source.stem}_{codec}"
    folder.mkdir(exist_ok=True)
    encoding = writing.Encoding(name, crf, codecs.pixel_format(name, info, info.size), info.size)
    low, high = (None, None) if span is None else (round(Fraction(part) / info.time_base) for part in span)
    read, writer, number = [], None, 0
    for frame in clip.frames(start_pts=low, stop_pts=high):
        if frame.index % 7 == 0:
            if writer:
                writer.close()
                number += 1
            writer = writing.SegmentWriter(folder, number, info, encoding)
        read.append(frame)
        writer.write(frame.pixels, frame.pts, frame.duration)
    writer.close()
    target = source.with_name(f"{source.stem}_{codec}_out{ending}")
    notes = writing.join(folder, target, info, muxer, span=span) + [note] * bool(note)
    return Clip(target), read, notes


def levels(frame) -> np.ndarray:
    return frame.pixels.astype(np.float64) * (255 / (255 if frame.pixels.dtype == np.uint8 else 65535))


def sound(path: Path, kind: str = "audio") -> list[bytes]:
    with av.open(str(path)) as opened:
        return [bytes(packet) for packet in opened.demux(getattr(opened.streams, kind)[0]) if packet.size]


@pytest.mark.parametrize(
    "codec, ending, same",
    [("h264", ".mp4", True), ("h265", ".mp4", True), ("av1", ".mp4", True), ("prores", ".mov", True),
     ("ffv1", ".mkv", False)],
)  # fmt: skip
def test_every_codec_keeps_what_a_clip_holds(tmp_path: Path, codec: str, ending: str, same: bool) -> None:
    times = make_clip(tmp_path / "clip.mp4", aspect=Fraction(1))
    result, read, _ = through(tmp_path / "clip.mp4", codec)
    frames = list(result.frames())
    assert result.path.suffix == ending and not result.broken
    assert [frame.pts * Fraction(1, 12800) for frame in read] == [pts * BASE for pts in times]
    shown = [frame.pts * result.info.time_base for frame in frames]
    start = shown[0]  # Matroska has no times below zero, and so moves all of a clip whose sound begins before it
    assert max(abs(a - start - pts * BASE) for a, pts in zip(shown, times, strict=True)) <= (0 if same else 0.001)
    assert float(start) == pytest.approx(0, abs=1024 / 48000 + 0.001)
    assert max(np.abs(levels(a) - levels(b)).mean() for a, b in zip(read, frames)) < 3
    assert result.info.colour == Clip(tmp_path / "clip.mp4").info.colour
    assert sound(result.path) == sound(tmp_path / "clip.mp4")
    with av.open(str(result.path)) as opened:
        assert opened.metadata["title"] == "A clip"
        assert opened.streams.audio[0].metadata["language"] == "eng"
        chapters = [(float(c["start"] * c["time_base"]), c["metadata"]["title"]) for c in opened.chapters()]
    assert chapters == [(0.0, "one"), (pytest.approx(0.4, abs=0.03), "two")]


def test_every_sound_and_the_subtitles_are_kept(tmp_path: Path) -> None:
    with_more_streams(tmp_path / "clip.mkv")
    result, _, notes = through(tmp_path / "clip.mkv", "h264")
    held = []
    for path in (tmp_path / "clip.mkv", result.path):
        with av.open(str(path)) as opened:
            streams = [stream for stream in opened.streams if stream.type != "video"]
            names = [(stream.type, stream.codec_context.name, stream.metadata.get("language")) for stream in streams]
            held.append((names, [(p.stream_index, bytes(p)) for p in opened.demux(streams) if p.size]))
    assert held[0][0] == [("audio", "aac", None), ("audio", "opus", "deu"), ("subtitle", "srt", "fra")]
    assert held[1][0] == held[0][0] and sorted(held[1][1]) == sorted(held[0][1]) and not any(notes)


def test_ten_bits_and_odd_sizes_are_kept_and_lossless_is_lossless(tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mkv", 8, (65, 97), "ffv1", "yuv420p10le")
    result, read, _ = through(tmp_path / "clip.mkv")
    assert (result.info.codec, result.info.pix_fmt, result.info.size) == ("ffv1", "yuv420p10le", (65, 97))
    frames = list(result.frames())
    assert read[0].pixels.dtype == np.uint16
    assert max(np.abs(levels(a) - levels(b)).mean() for a, b in zip(read, frames, strict=True)) < 0.05
    other, _, _ = through(tmp_path / "clip.mkv", "h264")
    assert (other.info.pix_fmt, other.info.size) == ("yuv444p10le", (65, 97))  # 4:2:0 would cut a row and a column
    assert len(list(other.frames())) == 8


@pytest.mark.parametrize("turn", [90, -90, 180])
def test_a_turned_clip_is_seen_upright_and_its_pixels_keep_their_aspect(tmp_path: Path, turn: int) -> None:
    make_clip(tmp_path / "clip.mov", 8, aspect=Fraction(4, 3), turn=turn)
    make_clip(tmp_path / "plain.mov", 8)
    result, read, _ = through(tmp_path / "clip.mov")
    upright = turn == 180
    assert read[0].pixels.shape[:2] == result.info.size == ((64, 96) if upright else (96, 64))
    assert result.info.aspect == (Fraction(4, 3) if upright else Fraction(3, 4)) and result.info.turn == 0
    plain = next(Clip(tmp_path / "plain.mov").frames())
    with av.open(str(tmp_path / "clip.mov")) as opened:
        rotation = next(opened.decode(video=0)).rotation
    assert np.array_equal(read[0].pixels, np.rot90(plain.pixels, round(rotation / 90) % 4))


@pytest.mark.parametrize("tags", [(1, 1, 1, 1), (1, 1, 1, 2), (5, 6, 6, 1), (2, 2, 2, 0)])
def test_the_matrix_and_the_range_are_those_of_the_clip(tmp_path: Path, tags) -> None:
    flat = [np.full((64, 96, 3), (200, 60, 40), np.uint8)] * 3
    make_clip(tmp_path / "clip.mp4", flat, tags=tags)
    result, read, _ = through(tmp_path / "clip.mp4")
    frames = list(result.frames())
    assert np.abs(levels(frames[0]) - levels(read[0])).max() <= 2
    assert (result.info.colour.matrix, result.info.colour.range % 2) == (tags[0], tags[3] % 2)


def test_other_containers(tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.webm", codec="libvpx-vp9", audio="libopus")
    result, _, notes = through(tmp_path / "clip.webm")
    assert (result.path.suffix, result.info.codec, notes) == (".webm", "av1", [])
    make_clip(tmp_path / "clip.avi", codec="mpeg4", audio="mp3")
    result, _, notes = through(tmp_path / "clip.avi")
    assert result.path.suffix == ".mp4" and "does not hold" in notes[0]
    assert sound(result.path) == sound(tmp_path / "clip.avi")


def test_transparency_is_told_where_there_is_any(tmp_path: Path) -> None:
    from PIL import Image

    notes = {}
    for name, alpha in (("clear", 128), ("opaque", 255)):
        frames = [Image.new("RGBA", (32, 32), (200, 20 * n, 40, alpha)) for n in range(3)]
        frames[0].save(tmp_path / f"{name}.gif", save_all=True, append_images=frames[1:], disposal=2)
        Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(tmp_path / "none.gif")
        notes[name] = Clip(tmp_path / f"{name}.gif").info.notes
    assert notes["opaque"] == () and Clip(tmp_path / "none.gif").info.notes == ("its transparency is not kept",)
    with av.open(str(tmp_path / "clip.webm"), "w") as out:
        stream = out.add_stream("libvpx-vp9", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuva420p"
        picture = np.full((32, 32, 4), 128, np.uint8)
        for _ in range(2):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgba").reformat(format="yuva420p")))
        out.mux(stream.encode())
    assert Clip(tmp_path / "clip.webm").info.notes == ("its transparency is not kept",)


def test_a_range_begins_at_zero_with_its_own_sound_and_chapters(tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4")
    result, read, _ = through(tmp_path / "clip.mp4", span=(0.2, 0.6))
    frames = list(result.frames())
    assert frames[0].pts == 0 and len(frames) == len(read) == 10
    end = (frames[-1].pts + frames[-1].duration) * result.info.time_base
    assert float(end) == pytest.approx(0.4, abs=0.06)
    assert 0 < len(sound(result.path)) < len(sound(tmp_path / "clip.mp4"))
    with av.open(str(result.path)) as opened:
        starts = [float(c["start"] * c["time_base"]) for c in opened.chapters()]
    assert starts == pytest.approx([0, 0.2], abs=0.002)
    assert parse_range("1.5:") == (1.5, float("inf")) and parse_range(":2") == (0, 2)
    for wrong in ("5", "3:2", "a:b", "-1:4"):
        with pytest.raises(BadOption, match="START:END"):
            parse_range(wrong)


def test_what_breaks_off_is_told_and_read_as_far_as_it_goes(tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mkv", 40)
    whole = (tmp_path / "clip.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) * 6 // 10])
    clip = Clip(tmp_path / "cut.mkv")
    count = len(list(clip.frames()))
    assert 3 < count < 38 and "breaks off at" in clip.broken
    whole_clip = Clip(tmp_path / "clip.mkv")
    assert len(list(whole_clip.frames())) == 40 and not whole_clip.broken
    make_clip(tmp_path / "clip.mp4", 20)
    data = (tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadClip, match="cut off or no clip"):
        Clip(tmp_path / "cut.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=48000)
        stream.layout = "mono"
        part = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        part.sample_rate = 48000
        out.mux(stream.encode(part))
        out.mux(stream.encode())
    with pytest.raises(BadClip, match="holds no video"):
        Clip(tmp_path / "sound.mp4")


def test_the_result_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_clip(tmp_path / "clip.mp4")
    result, _, _ = through(tmp_path / "clip.mp4")
    folder = tmp_path / "parts_clip_None"
    info = Clip(tmp_path / "clip.mp4").info
    with pytest.raises(BadClip, match="exists already"):
        writing.join(folder, result.path, info, "mp4")
    target = tmp_path / "new.mp4"

    def stop(frames: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writing.join(folder, target, info, "mp4", progress=stop)
    assert not target.exists() and not list(tmp_path.glob(".*.partial"))


def test_options_are_checked(tmp_path: Path) -> None:
    for codec, crf in (("h264", 60.0), ("ffv1", 10.0), ("prores", 5.0)):
        with pytest.raises(BadOption, match="--crf"):
            codecs.check(codec, crf, (64, 96))
    with pytest.raises(BadOption, match="64 px"):
        codecs.check("av1", None, (48, 96))
