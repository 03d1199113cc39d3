"""Restore Video, and Restore Faces over a batch that is one clip."""
from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.test_nodes.conftest import SAMPLES

av = pytest.importorskip("av")
CLIP = SAMPLES / "idcodeformer_clip.mp4"


def frames_in(path: str | Path) -> list:
    with av.open(str(path)) as container:
        return [(frame.pts * frame.time_base, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


@pytest.fixture
def quick(monkeypatch, model):
    """One face in the middle of every frame, and no search for it."""
    finder = model.detector().ready()
    first = torch.from_numpy(frames_in(CLIP)[0][1]).float().div(255).movedim(-1, 0)
    found = finder([first])[0]
    monkeypatch.setattr(type(finder), "__call__", lambda self, images, options=None: tuple(found for _ in images))
    monkeypatch.setattr(type(finder), "look_again", lambda self, images, faces: tuple(found for _ in images))
    return found


def test_a_clip_comes_out_with_the_same_frames_and_other_faces(pack, run, model, quick):
    from comfy_api.input_impl import VideoFromFile

    steps = []
    pack.utils.hook = lambda value, total, preview: steps.append(value)
    video, report = run("RestoreVideo", model=model, video=VideoFromFile(str(CLIP)))
    before, after = frames_in(CLIP), frames_in(video.get_stream_source())
    assert [time for time, _ in before] == [time for time, _ in after]
    assert Path(video.get_stream_source()).is_relative_to(pack.folder_paths.get_temp_directory())
    x0, y0, x1, y1 = (int(v) for v in quick[0].box)
    for (_, a), (_, b) in zip(before, after):
        change = abs(a.astype(float) - b).mean(2)
        assert change[y0:y1, x0:x1].mean() > 4 and change[:, : max(1, x0 // 4)].mean() < 3
    assert "track 0 (person 0)" in report and "restored" in report and f"{len(before)} frames" in report
    assert steps == sorted(steps) and steps[-1] == 100


def test_a_part_of_a_clip_and_a_clip_in_memory(pack, run, model, quick):
    from comfy_api.input_impl import VideoFromFile

    times = [float(time) for time, _ in frames_in(CLIP)]
    part, _ = run("RestoreVideo", model=model, video=VideoFromFile(str(CLIP), start_time=times[2], duration=10))
    assert len(frames_in(part.get_stream_source())) == len(times) - 2
    inside = VideoFromFile(io.BytesIO(CLIP.read_bytes()))
    whole, _ = run("RestoreVideo", model=model, video=inside, codec="ffv1")
    assert Path(whole.get_stream_source()).suffix == ".mkv"
    assert len(frames_in(whole.get_stream_source())) == len(times)


def test_cancel_stops_a_clip_and_leaves_nothing(pack, run, model, quick):
    from comfy_api.input_impl import VideoFromFile

    temporary = Path(pack.folder_paths.get_temp_directory())
    before = set(temporary.glob("idcodeformer_*")) if temporary.exists() else set()

    def cancel(value, total, preview):
        if value >= 50:
            pack.mm.interrupt_current_processing()

    pack.utils.hook = cancel
    with pytest.raises(pack.mm.InterruptProcessingException):
        run("RestoreVideo", model=model, video=VideoFromFile(str(CLIP)))
    assert set(temporary.glob("idcodeformer_*")) == before


def test_what_is_no_video_is_refused(pack, run, model):
    with pytest.raises(pack.errors.BadOption, match="Load Video"):
        run("RestoreVideo", model=model, video=torch.zeros(1, 8, 8, 3))


def test_frames_can_be_one_clip(pack, run, model, portrait, found):
    faces = found(portrait)
    frames = torch.cat([portrait] * 4)
    given = replace(faces, faces=faces.faces * 4, dropped=faces.dropped * 4)
    result = run("RestoreFaces", model=model, image=frames, faces=given, frames="video")
    image, restored, original, mask, report = result
    assert image.shape == frames.shape and len(restored) == len(original) == 4
    assert 0.05 < float(mask[2].mean()) < 0.6
    untouched = mask[..., None].expand_as(image) == 0
    assert float((image - frames)[untouched].abs().max()) < 1e-4
    assert float((image[0] - frames[0]).abs().mean()) > 0.01
    assert float((image[2] - image[1]).abs().mean()) < 0.01  # what stands still stays still
    assert "4 of 4 faces restored in 4 frames" in report
    with pytest.raises(pack.errors.BadOption, match="frames = video"):
        run("RestoreFaces", model=model, image=frames, faces=given, frames="video", reference=portrait)
