"""A clip restored as a file: same length, times and sound; killed and gone on with; what goes wrong is told."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

av = pytest.importorskip("av")

from video_clips import make_clip  # noqa: E402

from idcodeformer import FacePipeline, load_recogniser, load_restorer  # noqa: E402
from idcodeformer.batch.settings import RestoreSettings  # noqa: E402
from idcodeformer.cli import main  # noqa: E402
from idcodeformer.files.reading import read  # noqa: E402
from idcodeformer.geometry.templates import ffhq_template  # noqa: E402
from idcodeformer.types import DetectOptions, Face, RestoreOptions  # noqa: E402
from idcodeformer.video import job as job_module  # noqa: E402
from idcodeformer.video import segments  # noqa: E402
from idcodeformer.video.analysis import Analysis  # noqa: E402
from idcodeformer.video.job import ClipSettings, VideoJob  # noqa: E402
from idcodeformer.video.pipeline import VideoPipeline  # noqa: E402
from idcodeformer.video.reading import Clip  # noqa: E402
from idcodeformer.video.sequence import FrameFolder  # noqa: E402


class RedFinder:
    """Takes a red square for a face of its size."""

    def __call__(self, images, options=None):
        return tuple(self._one(image) for image in images)

    def _one(self, image):
        red = (image[0] > 0.6) & (image[1] < 0.4)
        where = red.nonzero().float()
        if len(where) < 9:
            return ()
        (y0, x0), (y1, x1) = where.min(0).values, where.max(0).values
        points = torch.from_numpy((ffhq_template(512) - 256) / 512).float() * (x1 - x0)
        points = points + torch.stack([x0 + x1, y0 + y1]) / 2
        return (Face(torch.stack([x0, y0, x1, y1]), 0.95, points),)


def scene(frame: int, face: bool = True, shot: int = 0) -> np.ndarray:
    picture = np.full((96, 128, 3), (60, 90 + 60 * shot, 120), np.uint8)
    picture[::8] = 30 + 90 * shot
    if face:
        x = 30 + frame
        picture[30:62, x : x + 32] = (220, 40, 40)
        picture[40:44, x + 6 : x + 12] = picture[40:44, x + 20 : x + 26] = (200, 200, 240)
    return picture


@pytest.fixture(scope="module")
def pipeline(tiny_restorer: Path, tiny_recogniser: Path) -> FacePipeline:
    return FacePipeline(load_restorer(tiny_restorer), RedFinder(), load_recogniser(tiny_recogniser))


def job(pipeline: FacePipeline, out: Path, clips: ClipSettings | None = None, **asked) -> VideoJob:
    options = asked.pop("options", RestoreOptions())
    return VideoJob(pipeline, RestoreSettings(options, DetectOptions(min_eye_distance=3), out=out, **asked), clips)


def frames_of(path: str | Path) -> list:
    return list(Clip(Path(path)).frames())


def test_a_clip_keeps_length_times_and_sound_and_changes_where_the_face_is(tmp_path: Path, pipeline) -> None:
    times = make_clip(tmp_path / "clip.mp4", [scene(n, face=n >= 6) for n in range(24)])
    making = job(pipeline, tmp_path / "out", compare=True, save_crops=True)
    outcome = making.attempt(tmp_path / "clip.mp4", Path("clip"))
    assert (outcome.status, outcome.error, outcome.frames, outcome.restored) == ("restored", "", 24, 1)
    before, after = frames_of(tmp_path / "clip.mp4"), frames_of(outcome.output)
    assert [frame.pts for frame in after] == [frame.pts for frame in before] and len(times) == len(after)
    change = [np.abs(a.pixels.astype(float) - b.pixels).mean(2) for a, b in zip(before, after)]
    assert change[3].mean() < 2.5 and change[15][40:60, 50:70].mean() > 15
    assert change[15][:, 100:].mean() < 2.5  # far from the face
    with av.open(outcome.output) as opened:
        assert [stream.type for stream in opened.streams][:2] == ["video", "audio"]
    assert not list((tmp_path / "out/final_results").glob(".*"))
    sheet = frames_of(tmp_path / "out/compare/clip.mp4")
    assert sheet[0].pixels.shape == (96, 256, 3) and len(sheet) == 24
    lines = [line for line in outcome.faces if line["status"] == "restored"]
    assert [line["frame"] for line in lines] == list(range(6, 24)) and {line["track"] for line in lines} == {0}
    base = Clip(tmp_path / "clip.mp4").info.time_base
    assert lines[0]["time"] == pytest.approx(float(before[6].pts * base), abs=1e-3)
    json.dumps(outcome.entry())
    photos = sorted((tmp_path / "out/cropped_faces/clip/person_0").glob("*.png"))
    assert photos and all(RedFinder()([read(photo).frames[0]])[0] for photo in photos)


def test_a_killed_run_is_gone_on_with_and_gives_the_same_clip(tmp_path: Path, pipeline, monkeypatch) -> None:
    monkeypatch.setattr(segments, "_SEGMENT", 0.3)
    monkeypatch.setattr(job_module, "_KEPT_EVERY", 0.0)
    make_clip(tmp_path / "clip.mp4", [scene(n) for n in range(36)])
    lossless = ClipSettings(codec="ffv1")
    whole = job(pipeline, tmp_path / "whole", lossless).attempt(tmp_path / "clip.mp4", Path("clip"))

    class Killed(BaseException):
        pass

    def stop_at(number: int, stage: str):
        def progress(done: int, total: int, what: str) -> None:
            if what == stage and done >= number:
                raise Killed

        return progress

    out = tmp_path / "out"
    for stage, number in (("detecting", 14), ("restoring", 20)):
        with pytest.raises(Killed):
            job(pipeline, out, lossless).attempt(tmp_path / "clip.mp4", Path("clip"), stop_at(number, stage))
        assert not list(out.glob("final_results/*.mkv"))
    (folder,) = out.glob("final_results/.clip.*.parts")
    there = len(list(folder.glob("*.json")))
    assert there >= 1
    seen = []
    outcome = job(pipeline, out, lossless).attempt(
        tmp_path / "clip.mp4", Path("clip"), lambda done, total, what: seen.append((what, done))
    )
    assert outcome.status == "restored" and ("detecting", 36) not in seen[:-1]
    assert min(done for what, done in seen if what == "restoring") > 1
    a, b = frames_of(whole.output), frames_of(outcome.output)
    assert [f.pts for f in a] == [f.pts for f in b]
    apart = [np.abs(x.pixels.astype(int) - y.pixels) for x, y in zip(a, b)]
    assert max(part.mean() for part in apart) < 1  # a code that had been held may be chosen anew
    assert apart[0].max() == 0 and len(outcome.faces) == len(whole.faces) == 36
    assert not folder.exists()


def test_other_work_is_not_taken_for_this(tmp_path: Path, pipeline) -> None:
    make_clip(tmp_path / "clip.mp4", [scene(n) for n in range(8)])
    first = job(pipeline, tmp_path / "out").attempt(tmp_path / "clip.mp4", Path("clip"))
    again = job(pipeline, tmp_path / "out").attempt(tmp_path / "clip.mp4", Path("clip"))
    assert "exists already" in again.error and first.status == "restored"
    kept = job(pipeline, tmp_path / "out", skip_existing=True).attempt(tmp_path / "clip.mp4", Path("clip"))
    assert kept.status == "kept"
    a = job(pipeline, tmp_path / "out")
    b = job(pipeline, tmp_path / "out", options=RestoreOptions(w=0.1))
    encoding = job_module.Encoding("h264", None, "yuv420p", (96, 128))
    assert a._key(tmp_path / "clip.mp4", encoding) != b._key(tmp_path / "clip.mp4", encoding)


def test_a_clip_without_a_face_is_copied_and_a_broken_one_restored_as_far_as_it_goes(tmp_path: Path, pipeline) -> None:
    make_clip(tmp_path / "none.mp4", [scene(n, face=False) for n in range(8)])
    outcome = job(pipeline, tmp_path / "out").attempt(tmp_path / "none.mp4", Path("none"))
    assert outcome.status == "no face" and Path(outcome.output).read_bytes() == (tmp_path / "none.mp4").read_bytes()
    make_clip(tmp_path / "clip.mkv", [scene(n) for n in range(40)])
    whole = (tmp_path / "clip.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    outcome = job(pipeline, tmp_path / "out").attempt(tmp_path / "cut.mkv", Path("cut"))
    assert "breaks off" in outcome.error and "frames before are in" in outcome.error
    assert 2 < len(frames_of(outcome.output)) == outcome.frames < 38
    (tmp_path / "text.mp4").write_text("no clip")
    assert "cannot be read as a clip" in job(pipeline, tmp_path / "out").attempt(tmp_path / "text.mp4", Path("t")).error


def test_a_folder_of_frames_a_range_and_an_upscale(tmp_path: Path, pipeline) -> None:
    from PIL import Image

    (tmp_path / "frames").mkdir()
    for number in range(12):
        Image.fromarray(scene(number)).save(tmp_path / f"frames/f{number}.png")
    source = FrameFolder(tmp_path / "frames", Fraction(12))
    assert [frame.pixels[35, :, 0].argmax() for frame in source.frames()] == [30 + n for n in range(12)]
    settings = ClipSettings(sequence=Fraction(12), span=(0.25, 0.75))
    options = RestoreOptions(upscale=1.5)
    outcome = job(pipeline, tmp_path / "out", settings, options=options).attempt(tmp_path / "frames", Path("frames"))
    frames = frames_of(outcome.output)
    assert len(frames) == 6 and frames[0].pixels.shape == (144, 192, 3) and frames[0].pts == 0


def test_a_range_outside_the_clip_is_a_sentence(tmp_path: Path, pipeline) -> None:
    make_clip(tmp_path / "clip.mp4", [scene(n) for n in range(4)])
    for span in ((50.0, 60.0), (0.18, float("inf"))):
        outcome = job(pipeline, tmp_path / "out", ClipSettings(span=span)).attempt(tmp_path / "clip.mp4", Path("clip"))
        assert "has no frame in this range; give another --range" in outcome.error and not outcome.output


def test_a_gray_track_stays_gray_in_all_its_frames(tmp_path: Path, pipeline) -> None:
    analysis = Analysis()
    make_clip(tmp_path / "clip.mkv", [scene(n) for n in range(9)], codec="ffv1", pix_fmt="yuv444p")
    source, video = Clip(tmp_path / "clip.mkv"), VideoPipeline(pipeline)
    options = DetectOptions(min_eye_distance=3)
    tracks = video.plan(video.analyse(source, options, analysis=analysis), source, options)
    tracks[0].gray = True
    for frame in video.restore(source, tracks, RestoreOptions(parse_classes=None)):
        inner = frame.pixels[40:52, 40 + frame.source.index : 50 + frame.source.index].astype(float)
        spread = (inner - inner.mean((0, 1))).std((0, 1))
        difference = (inner[..., 0] - inner[..., 1]).std()
        assert difference <= spread.mean() * 3 + 3  # a tint, but one line through the colours
    packed = Analysis.unpack(analysis.pack())
    assert packed.frames == 9 and packed.complete and np.array_equal(packed.table(), analysis.table())
    assert packed.pts == analysis.pts and packed.vectors.keys() == analysis.vectors.keys()


def test_the_identity_gate_fades_a_face_and_does_not_blink(tmp_path: Path, pipeline, monkeypatch) -> None:
    from idcodeformer.video import second_pass as module

    make_clip(tmp_path / "clip.mkv", [scene(n) for n in range(30)], codec="ffv1", pix_fmt="yuv444p", steady=True)
    likeness = iter([0.9, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    monkeypatch.setattr(module, "cosine", lambda a, b: torch.tensor(next(likeness)))
    source, video = Clip(tmp_path / "clip.mkv"), VideoPipeline(pipeline)
    options = DetectOptions(min_eye_distance=3)
    tracks = video.plan(video.analyse(source, options), source, options)
    run = module.SecondPass(pipeline, source, tracks, RestoreOptions(min_identity=0.5), 1.0, None, None)
    crop = torch.zeros(3, 64, 64)
    shares = [run._shown(tracks[0], frame, (crop, crop))[0] for frame in range(30)]
    assert shares[0] == 1 and shares[-1] == 0
    assert max(abs(a - b) for a, b in zip(shares, shares[1:])) <= 1 / (0.25 * 25) + 1e-9


@pytest.mark.slow
def test_kill_9_and_the_same_command_goes_on(tmp_path: Path, root: Path, tiny_restorer: Path) -> None:
    from PIL import Image

    face = np.asarray(Image.open(root / "idcodeformer/assets/portrait.jpg").convert("RGB").resize((160, 200)))
    make_clip(tmp_path / "clip.mp4", [np.roll(face, n % 5, 1) for n in range(40)], steady=True)
    command = [sys.executable, "-m", "idcodeformer", "restore", str(tmp_path / "clip.mp4"), "-o", str(tmp_path / "out"),
               "--model", str(tiny_restorer), "--device", "cpu"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        if list(tmp_path.glob("out/final_results/.clip.*.parts/faces.npz")):
            break
        time.sleep(0.1)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not (tmp_path / "out/final_results/clip.mp4").exists()
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(frames_of(tmp_path / "out/final_results/clip.mp4")) == 40
    assert not list((tmp_path / "out/final_results").glob(".*"))


def test_the_command_line_takes_clips_and_pictures_together(tmp_path: Path, monkeypatch, pipeline, capsys) -> None:
    from idcodeformer.batch import job as batch_job

    monkeypatch.setattr(batch_job, "load_pipeline", lambda settings: pipeline)
    make_clip(tmp_path / "clip.mp4", [scene(n) for n in range(8)])
    from PIL import Image

    Image.fromarray(scene(3)).save(tmp_path / "photo.png")
    report = tmp_path / "report.json"
    line = ["restore", str(tmp_path / "clip.mp4"), str(tmp_path / "photo.png"), "-o", str(tmp_path / "out"),
            "--min-eye-distance", "3", "--json", str(report), "--crf", "20"]  # fmt: skip
    assert main(line) == 0
    files = json.loads(report.read_text())["files"]
    assert [Path(f["output"]).name for f in files] == ["clip.mp4", "photo.png"]
    assert len(files[0]["faces"]) == 8 and files[0]["tracks"][0]["last"] == 7
    assert "8 frames; 1 face restored in 1 track" in capsys.readouterr().out
    assert main(["restore", str(tmp_path / "clip.mp4"), "-o", str(tmp_path / "o2"), "--range", "9"]) == 2
    capsys.readouterr()
    line = ["restore", str(tmp_path / "clip.mp4"), str(tmp_path / "photo.png"), "-o", str(tmp_path / "o3"),
            "--min-eye-distance", "3", "--target-identity", "0.99"]  # fmt: skip
    assert main(line) == 0
    said = capsys.readouterr().out.splitlines()
    assert "w 1.00; identity target 0.99 not reached: " in said[0] and "w 1.00" in said[1]
    line = ["restore", str(tmp_path / "clip.mp4"), "-o", str(tmp_path / "o4"), "--aligned"]
    assert main(line) == 1 and "--aligned is for pictures" in capsys.readouterr().err


def test_without_pyav_the_remedy_is_named_and_pictures_are_found(tmp_path: Path, monkeypatch) -> None:
    import importlib.util

    from idcodeformer.errors import MissingPackage
    from idcodeformer.files.finding import look_through

    for name in ("clip.mp4", "photo.png"):
        (tmp_path / name).write_bytes(b"")
    assert len(look_through([tmp_path], clips=True).pictures) == 2
    assert [file.name for file, _ in look_through([tmp_path]).pictures] == ["photo.png"]
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = look_through([tmp_path], clips=True)
    assert [file.name for file, _ in found.pictures] == ["photo.png"] and "pip install av" in found.unread[0][1]
    with pytest.raises(MissingPackage, match="pip install av"):
        Clip(tmp_path / "clip.mp4")



@pytest.mark.parametrize(
    "detail, mode, kept, own",
    [(0.05, "auto", False, False), (0.001, "auto", True, False), (0.05, "keep", True, True),
     (0.05, "restore", True, False)],
)  # fmt: skip
def test_a_face_larger_than_the_network_is_one_in_all_its_frames(
    pipeline, monkeypatch, detail, mode, kept, own
) -> None:
    from idcodeformer.restoration import large
    from idcodeformer.video.sequence import MemoryClip
    from idcodeformer.video.tracks import BOX, DETAIL, FRAME, POINTS, SCORE, WIDTH

    monkeypatch.setattr(large, "largest_face", lambda side: 1.5)
    analysis = Analysis(frames=6, pts=list(range(6)), complete=True)
    for frame in range(6):
        analysis.shots.add(np.zeros((800, 800, 3), np.uint8))
        row = np.zeros(WIDTH)
        row[FRAME], row[SCORE], row[BOX] = frame, 0.9, (100, 100, 500, 500)
        row[POINTS], row[DETAIL] = ffhq_template(512).ravel() + frame, detail if frame != 3 else 0.0
        analysis.rows.append(row)
    source = MemoryClip(lambda number: np.zeros((800, 800, 3), np.uint8), 6, (800, 800), Fraction(25))
    (track,) = VideoPipeline(pipeline).plan(analysis, source, restoring=RestoreOptions(large_faces=mode))
    assert (bool(track.kept), track.own_detail) == (kept, own)
    assert kept or "larger (512 px) than the 64 px" in track.reason
