"""RestoreJob without a command line: settings as a value, files or bytes in, files or bytes out."""
from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from idcodeformer.batch import ModelChoice, RestoreJob, RestoreSettings
from idcodeformer.cli import main
from idcodeformer.errors import BadOption
from idcodeformer.files.reading import read
from idcodeformer.guidance.options import GuidanceOptions
from idcodeformer.types import DetectOptions, RestoreOptions


@pytest.fixture(scope="module")
def models(tiny_restorer: Path, tiny_recogniser: Path) -> ModelChoice:
    return ModelChoice(str(tiny_restorer), recogniser=str(tiny_recogniser), parser="none", device="cpu")


@pytest.fixture(scope="module")
def picture(photos: Path) -> bytes:
    buffer = io.BytesIO()
    Image.open(photos / "portrait.jpg").resize((240, 240)).save(buffer, "PNG")
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_bytes_files_and_the_command_line_give_the_same_pixels(
    models: ModelChoice, picture: bytes, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(picture)
    settings = RestoreSettings(RestoreOptions(w=0.3), models=models, out=tmp_path / "job")
    job = RestoreJob(settings)
    data, told = job.attempt_bytes(picture, "a.png")
    filed = job.attempt(tmp_path / "a.png", Path("a"))
    line = ["restore", tmp_path / "a.png", "-o", tmp_path / "line", "-w", "0.3", "--model", models.restorer]
    line += ["--recogniser", models.recogniser, "--parser", "none", "--device", "cpu", "--json", tmp_path / "r.json"]
    assert main([str(part) for part in line]) == 0
    assert told.status == filed.status == "restored" and told.size == (240, 240) and told.output == ""
    assert filed.output == str(tmp_path / "job/final_results/a.png")
    for file in (tmp_path / "job/final_results/a.png", tmp_path / "line/final_results/a.png"):
        np.testing.assert_array_equal(pixels(file.read_bytes()), pixels(data))
    assert np.abs(pixels(data).astype(int) - pixels(picture)).mean() > 0.5
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["files"][0]["faces"] == json.loads(json.dumps(told.faces)) == json.loads(json.dumps(filed.faces))
    assert {"w", "inputs", "model", "only_center_face", "bg_tile"} <= set(report["options"])


def test_settings_and_job_go_to_another_process_before_the_networks_are_loaded(
    models: ModelChoice, picture: bytes
) -> None:
    settings = RestoreSettings(RestoreOptions(strength=0), DetectOptions(keep="largest"), models, format="webp")
    there = pickle.loads(pickle.dumps(RestoreJob(settings)))
    assert there.settings == settings and there.pipeline is None
    data, outcome = there.attempt_bytes(picture)
    assert data[:4] == b"RIFF" and outcome.restored == 1


def test_a_bad_picture_is_told_and_costs_no_other(models: ModelChoice, picture: bytes) -> None:
    failed: list[Exception] = []
    job = RestoreJob(RestoreSettings(models=models), failed=failed.append)
    data, outcome = job.attempt_bytes(picture[:2000], "shelf/old.png")
    assert data == b"" and outcome.status == "failed" and outcome.error.startswith("shelf/old.png is damaged")
    assert len(failed) == 1 and job.attempt_bytes(b"", "none.png")[1].error.startswith("none.png is empty")
    assert job.attempt_bytes(picture)[1].status == "restored"
    assert "No output folder" in job.attempt(Path("x.png"), Path("x")).error


def test_reference_photos_may_be_bytes(models: ModelChoice, picture: bytes, photos: Path) -> None:
    settings = RestoreSettings(models=models, references=(picture, str(photos / "portrait.jpg")))
    _, outcome = RestoreJob(settings).attempt_bytes(picture)
    assert outcome.faces[0]["id_sim_before"] > 0.9
    told = json.loads(json.dumps(settings.to_dict()))
    assert told["references"][0].startswith("bytes:") and told["options"]["w"] == 0.8 and told["out"] is None
    empty = RestoreSettings(models=models, references=(_plain_gray(),))
    with pytest.raises(Exception, match="Reference photo 0 shows no face"):
        RestoreJob(empty).load()


def test_what_cannot_work_is_refused_with_the_settings() -> None:
    with pytest.raises(BadOption, match="choose one of png, jpg, webp"):
        RestoreSettings(format="bmp")
    with pytest.raises(BadOption, match="needs photos of the person"):
        RestoreSettings(guidance=GuidanceOptions(5))
    with pytest.raises(BadOption, match="need a recogniser"):
        RestoreJob(RestoreSettings(models=ModelChoice(recogniser="none"), references=("x.png",))).load()


def test_a_pipeline_and_a_person_that_are_there_already_are_used(models: ModelChoice, picture: bytes) -> None:
    first = RestoreJob(RestoreSettings(models=models, references=(picture,))).load()
    again = RestoreJob(RestoreSettings(), first.pipeline, first.references[0])
    frames = torch.from_numpy(pixels(picture).copy()).permute(2, 0, 1)[None].float() / 255
    restored = again.restore(frames)
    assert again.pipeline is first.pipeline and restored.faces[0].id_sim_before > 0.9
    torch.testing.assert_close(restored.result.images[0], first.restore(frames).result.images[0])
    likeness = []
    for person in (first.references, first.references[0]):
        crop = RestoreJob(RestoreSettings(aligned=True), first.pipeline, person).restore(frames)
        assert crop.result is None and crop.picture.size == (64, 64)
        likeness.append(crop.faces[0].id_sim_before)
    assert likeness[0] == likeness[1] != restored.faces[0].id_sim_before


def _plain_gray() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "gray").save(buffer, "PNG")
    return buffer.getvalue()


def test_files_are_restored_in_place_and_pictures_of_a_caller_are_not(
    models: ModelChoice, picture: bytes, tmp_path: Path
) -> None:
    wide = np.zeros((240, 600, 3), np.uint8)
    wide[:, :240], wide[:, 240:] = pixels(picture), np.random.default_rng(1).integers(0, 256, (240, 360, 3))
    Image.fromarray(wide).save(tmp_path / "a.png")
    job = RestoreJob(RestoreSettings(models=models, out=tmp_path)).load()
    read_in = read(tmp_path / "a.png")
    before = read_in.frames.clone()
    kept = job.restore(read_in)
    assert torch.equal(read_in.frames, before) and kept.picture.frames.data_ptr() != read_in.frames.data_ptr()
    written = []
    pipeline = job.pipeline

    def seen(images, *args, **kwargs):
        result = pipeline(images, *args, **kwargs)
        written.append(result.images[0].data_ptr() == images[0].data_ptr())
        return result

    job.pipeline = seen
    told = job.attempt(tmp_path / "a.png", Path("a"))
    assert told.status == "restored" and written == [True]
    after = pixels(Path(told.output).read_bytes())
    np.testing.assert_array_equal(after[:, 400:], wide[:, 400:])  # beyond the crop's square: every byte
    wanted = (kept.picture.frames[0] * 255).round().byte().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(after, wanted)
    assert (after[:, :240] != wide[:, :240]).any()
