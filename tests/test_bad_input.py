"""Bad input of every kind: one clear sentence, the right exit code, and nothing lost."""
from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from idcodeformer.cli import main
from idcodeformer.detection import load_detector
from idcodeformer.errors import BadImage, NoDevice
from idcodeformer.pipeline import FacePipeline
from idcodeformer.restoration.codeformer import load_restorer
from idcodeformer.types import RestoreOptions

Fails = Callable[..., str]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture) -> Fails:
    """Run a line that must fail with a given exit code; returns the one sentence it was told with."""

    def run(code: int, *arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == code
        told = capsys.readouterr().err.strip()
        sentences = [line for line in told.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in told
        assert len(sentences) == 1, told
        return sentences[0].removeprefix("error: ")

    return run


@pytest.fixture
def photo(tmp_path: Path, photos: Path) -> Path:
    file = tmp_path / "photo.png"
    Image.open(photos / "portrait.jpg").resize((200, 200)).save(file)
    return file


def test_wrong_path(fails: Fails, tmp_path: Path) -> None:
    told = fails(1, "restore", tmp_path / "nothing.png", "-o", tmp_path / "out")
    assert "nothing.png does not exist" in told
    assert not (tmp_path / "out").exists()


def test_empty_folder(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    assert "holds no picture" in fails(1, "restore", tmp_path / "in", "-o", tmp_path / "out")


def test_no_input(fails: Fails) -> None:
    assert "No input is named" in fails(2, "restore", "-o", "out")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("-w", "1.5", "between 0 and 1"),
        ("-w", "-0.1", "between 0 and 1"),
        ("-w", "nan", "between 0 and 1"),
        ("--upscale", "0", "upscale is 0"),
        ("--upscale", "100", "upscale is 100"),
        ("--strength", "2", "between 0 and 1"),
        ("--confidence", "7", "between 0 and 1"),
        ("--min-identity", "-1", "between 0 and 1"),
        ("--max-faces", "-3", "not be negative"),
        ("--batch-size", "-3", "batch"),
        ("--bg-tile", "3", "tile"),
        ("--order", "reference", "--reference"),
    ],
)
def test_options_out_of_range(fails: Fails, photo: Path, option: str, value: str, words: str) -> None:
    assert words in fails(2, "restore", photo, "-o", photo.parent / "out", option, value)
    assert not (photo.parent / "out").exists()


@pytest.mark.parametrize("line", [["restore", "--fidelity"], ["--w", "much"], ["restore", "a", "--precision", "fp8"]])
def test_arguments_that_do_not_parse(line: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(line)
    assert caught.value.code == 2 and "error:" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_no_cuda_when_asked_for_it(fails: Fails, photo: Path, tiny_restorer: Path) -> None:
    line = ("restore", photo, "-o", photo.parent / "out", "--model", tiny_restorer, "--device", "cuda")
    assert "finds no CUDA device" in fails(1, *line)
    with pytest.raises(NoDevice):
        load_restorer(tiny_restorer, device="cuda")


def test_unknown_device_and_model(fails: Fails, photo: Path, tiny_restorer: Path) -> None:
    out = photo.parent / "out"
    assert "names no device" in fails(1, photo, "-o", out, "--model", tiny_restorer, "--device", "abacus")
    assert "codefromer" in fails(1, photo, "-o", out, "--model", "codefromer")
    assert "no file" in fails(1, photo, "-o", out, "--model", photo.parent / "gone.pth")


def test_unwritable_output(fails: Fails, photo: Path) -> None:
    (photo.parent / "file").write_text("not a folder")
    assert "cannot be made" in fails(1, "restore", photo, "-o", photo.parent / "file")


def test_weights_that_are_none(fails: Fails, photo: Path, tiny_restorer: Path, tiny_recogniser: Path) -> None:
    folder = photo.parent
    (folder / "page.pth").write_bytes(b"<!DOCTYPE html><html><body>Not found</body></html>")
    (folder / "short.safetensors").write_bytes(tiny_restorer.read_bytes()[:5000])
    (folder / "empty.pth").touch()
    buffer = io.BytesIO()
    torch.save({"params_ema": {"weight": torch.zeros(99)}}, buffer)
    (folder / "short.pth").write_bytes(buffer.getvalue()[:300])
    for name in ("page.pth", "short.safetensors", "empty.pth", "short.pth"):
        assert name in fails(1, "restore", photo, "-o", folder / "out", "--model", folder / name)
    told = fails(1, "restore", photo, "-o", folder / "out", "--model", tiny_recogniser)
    assert "MobileFaceNet" in told and tiny_recogniser.name in told


def test_weights_of_another_size_are_named(fails: Fails, photo: Path, tiny_restorer: Path) -> None:
    from safetensors.torch import load_file

    state = load_file(tiny_restorer)
    state["quantize.embedding.weight"] = torch.zeros(7, 9)
    file = photo.parent / "odd.pth"
    torch.save({"params_ema": state}, file)
    assert "odd.pth" in fails(1, "restore", photo, "-o", photo.parent / "out", "--model", file)


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


def test_a_malicious_pickle_is_never_run(fails: Fails, photo: Path) -> None:
    target = photo.parent / "made_by_the_pickle"
    file = photo.parent / "evil.pth"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"params_ema": Malicious(target)}))
        archive.writestr("archive/version", "3")
    told = fails(1, "restore", photo, "-o", photo.parent / "out", "--model", file)
    assert "evil.pth" in told and "mkdir" in told
    assert not target.exists()


@pytest.fixture(scope="module")
def pipeline(tiny_restorer: Path) -> FacePipeline:
    return FacePipeline(load_restorer(tiny_restorer, "cpu"), load_detector(device="cpu"))


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (100, 20000), (20000, 100), (17, 3)])
def test_strange_sizes_are_normal(pipeline: FacePipeline, size: tuple[int, int]) -> None:
    image = torch.full((3, *size), 0.25)
    for upscale in (1.0, 1.5):
        result = pipeline([image], RestoreOptions(upscale=upscale))
        wanted = (3, round(size[0] * upscale), round(size[1] * upscale))
        assert result.images[0].shape == wanted and result.report == ()
        assert (result.images[0] - 0.25).abs().max() < 1e-3


def test_strange_sizes_as_files(photo: Path, tiny_restorer: Path) -> None:
    for name, size in (("dot", (1, 1)), ("strip", (20000, 100))):
        Image.new("RGB", size, (9, 99, 199)).save(photo.parent / f"{name}.png")
    line = [photo.parent / "dot.png", photo.parent / "strip.png", "-o", photo.parent / "out", "--model", tiny_restorer]
    assert main([*map(str, line), "--recogniser", "none", "--compare"]) == 0
    for name, size in (("dot", (1, 1)), ("strip", (20000, 100))):
        result = Image.open(photo.parent / f"out/final_results/{name}.png")
        assert result.size == size and result.getpixel((0, 0)) == (9, 99, 199)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_tensors_that_are_not_numbers(pipeline: FacePipeline, bad: float) -> None:
    image = torch.rand(3, 40, 40)
    image[1, 5, 5] = bad
    with pytest.raises(BadImage, match="NaN or infinite"):
        pipeline([image])


def test_tensors_of_the_wrong_range_shape_or_type(pipeline: FacePipeline) -> None:
    with pytest.raises(BadImage, match="0..1"):
        pipeline([torch.rand(3, 40, 40) * 255])
    with pytest.raises(BadImage, match="convert it to float"):
        pipeline([torch.zeros(3, 40, 40, dtype=torch.int16)])
    with pytest.raises(BadImage, match="divide by 255"):
        pipeline.restore_aligned(torch.zeros(1, 3, 128, 128, dtype=torch.uint8))
    for shape in ((40, 40), (4, 40, 40), (1, 40, 40), (3, 0, 40)):
        with pytest.raises(BadImage):
            pipeline([torch.zeros(shape)])


def test_a_little_out_of_range_is_clamped(pipeline: FacePipeline) -> None:
    result = pipeline([torch.full((3, 40, 40), 1.2)], RestoreOptions(upscale=2))
    assert float(result.images[0].max()) <= 1


def test_nothing_is_lost_where_the_disk_is_full(
    photo: Path, tiny_restorer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = photo.read_bytes()
    monkeypatch.setattr("os.fsync", full)
    line = [photo, "-o", photo.parent / "out", "--model", tiny_restorer, "--recogniser", "none"]
    assert main([str(part) for part in line]) == 1
    assert "No space left" in capsys.readouterr().err
    assert not [path for path in (photo.parent / "out").rglob("*") if path.is_file()]
    assert photo.read_bytes() == before


def test_scoring_what_shows_no_face(fails: Fails, photo: Path, tiny_recogniser: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(photo.parent / "noise.png")
    told = fails(1, "score", photo.parent / "noise.png", photo, "--recogniser", tiny_recogniser)
    assert "noise.png shows no face" in told
