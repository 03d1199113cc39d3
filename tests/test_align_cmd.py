"""``python -m training align``: which crops come out, what is said of the others, and going on after a cut."""
from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import idcodeformer.detection
from idcodeformer.geometry.templates import ffhq_template
from idcodeformer.types import Face
from training.__main__ import main
from training.config import ConfigError, DataConfig
from training.data.dataset import DataError, list_images
from training.tools.align import AlignOptions, align_folder, outside_share

SIDE = 400  # px of the synthetic pictures


def face(size: float, centre: tuple[float, float] = (200, 200), score: float = 0.99) -> Face:
    """A face whose FFHQ crop is the square of ``size`` px around ``centre``."""
    corner = torch.tensor(centre, dtype=torch.float32) - (size - 1) / 2
    points = torch.from_numpy((ffhq_template(512) + 0.5) * (size / 512) - 0.5).float() + corner
    low, high = points.amin(0) - size / 10, points.amax(0) + size / 10
    return Face(torch.cat([low, high]), score, points)


class KnownFaces:
    """A detector that knows what is in each picture by its top-left gray level, and counts what it is shown."""

    def __init__(self, faces: dict[int, tuple[Face, ...]]):
        self.faces, self.seen = faces, 0

    def __call__(self, images, options):
        self.seen += len(images)
        return tuple(self.faces.get(round(float(i[0, 0, 0]) * 255), ()) for i in images)


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> KnownFaces:
    known = KnownFaces({})
    monkeypatch.setattr(idcodeformer.detection, "load_detector", lambda name, device=None: known)
    return known


def picture(path: Path, level: int) -> Path:
    """A gradient whose first pixel is ``level``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.tile(np.linspace(0, 255, SIDE), (SIDE, 1)).astype(np.uint8)
    array[0, 0] = level
    Image.fromarray(np.stack([array] * 3, -1)).save(path)
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


OPTIONS = AlignOptions(size=128)


def test_crops_keep_folders_and_people(tmp_path: Path, detector: KnownFaces) -> None:
    picture(tmp_path / "in/ann/1.png", 1)
    picture(tmp_path / "in/bob/deep/2.png", 2)
    detector.faces = {1: (face(200),), 2: (face(160, (120, 200)), face(160, (290, 200)))}
    report = align_folder(tmp_path / "in", tmp_path / "out", OPTIONS)
    paths = ["ann/1_0.png", "bob/deep/2_0.png", "bob/deep/2_1.png"]
    table = rows(tmp_path / "out/images.csv")
    assert [r["path"] for r in table] == paths and [r["identity"] for r in table] == ["ann", "deep", "deep"]
    assert all(Image.open(tmp_path / "out" / p).size == (128, 128) for p in paths)
    assert float(table[0]["scale"]) == pytest.approx(128 / 200, rel=1e-3)
    assert (report["sources"], report["crops"], report["dropped"]) == (2, 3, {})
    listed = list_images(DataConfig(roots=[str(tmp_path / "out")], list_csv="images.csv"))
    assert [e.identity for e in listed] == ["ann", "deep", "deep"]  # what training reads


def test_the_crop_is_the_square_that_was_asked_for(tmp_path: Path, detector: KnownFaces) -> None:
    picture(tmp_path / "in/1.png", 1)
    detector.faces = {1: (face(256),)}
    align_folder(tmp_path / "in", tmp_path / "out", OPTIONS)
    crop = np.asarray(Image.open(tmp_path / "out/1_0.png"), dtype=float)[64, :, 0]
    source = np.linspace(0, 255, SIDE)
    expected = np.interp(72.5 + (np.arange(128) + 0.5) * 2 - 0.5, np.arange(SIDE), source)
    assert np.abs(crop - expected).max() < 1.5


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ((), "no face found"),
        ((face(200, score=0.6),), "score below the confidence"),
        ((face(60),), "would be enlarged more than 1.5 times"),
        ((face(200, (20, 200)),), "more than 10% of the crop lies outside the picture"),
    ],
)
def test_every_drop_has_its_reason(tmp_path: Path, detector: KnownFaces, found, reason: str) -> None:
    picture(tmp_path / "in/1.png", 1)
    detector.faces = {1: found}
    report = align_folder(tmp_path / "in", tmp_path / "out", OPTIONS)
    assert report["crops"] == 0 and report["dropped"] == {reason: 1} and report["sources_without_crop"] == 1
    (line,) = rows(tmp_path / "out/dropped.csv")
    assert line["source"] == "1.png" and line["reason"] == reason


def test_keep_largest_says_so_of_the_others(tmp_path: Path, detector: KnownFaces) -> None:
    picture(tmp_path / "in/1.png", 1)
    detector.faces = {1: (face(120, (100, 200)), face(180, (280, 200)))}
    report = align_folder(tmp_path / "in", tmp_path / "out", AlignOptions(size=128, keep="largest"))
    assert report["crops"] == 1 and report["dropped"] == {"not the largest face": 1}
    assert rows(tmp_path / "out/images.csv")[0]["face"] == "1"


def test_a_broken_file_is_listed_and_does_not_stop_the_others(tmp_path: Path, detector: KnownFaces) -> None:
    picture(tmp_path / "in/a.png", 1)
    (tmp_path / "in/b.jpg").write_bytes(b"no picture")
    picture(tmp_path / "in/c.png", 1)
    detector.faces = {1: (face(200),)}
    report = align_folder(tmp_path / "in", tmp_path / "out", OPTIONS)
    assert report["crops"] == 2 and report["dropped"] == {"not readable": 1}
    (line,) = rows(tmp_path / "out/dropped.csv")
    assert line["source"] == "b.jpg" and "b.jpg" in line["reason"]


def test_a_cut_run_goes_on_where_it_stopped(tmp_path: Path, detector: KnownFaces) -> None:
    for i in range(6):
        picture(tmp_path / f"in/{i}.png", 1)
    detector.faces = {1: (face(200),)}
    out = tmp_path / "out"
    align_folder(tmp_path / "in", out, OPTIONS)
    whole = (out / "images.csv").read_bytes()
    journal = (out / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (out / "journal.jsonl").write_bytes(b"".join(journal[:3]) + journal[3][:20])  # killed while writing the fourth
    (out / "5_0.png").unlink()
    first = (out / "0_0.png").stat().st_mtime_ns
    detector.seen = 0
    report = align_folder(tmp_path / "in", out, OPTIONS)
    assert detector.seen == 3 and report["crops"] == 6
    assert (out / "images.csv").read_bytes() == whole and (out / "5_0.png").is_file()
    assert (out / "0_0.png").stat().st_mtime_ns == first
    assert len((out / "journal.jsonl").read_text().splitlines()) == 6
    detector.seen = 0
    align_folder(tmp_path / "in", out, OPTIONS)
    assert detector.seen == 0


def test_other_options_do_not_mix_in_one_folder(tmp_path: Path, detector: KnownFaces) -> None:
    picture(tmp_path / "in/1.png", 1)
    align_folder(tmp_path / "in", tmp_path / "out", OPTIONS)
    with pytest.raises(ConfigError, match="size 128 then, 256 now"):
        align_folder(tmp_path / "in", tmp_path / "out", AlignOptions(size=256))


def test_crops_inside_the_input_folder_are_no_sources(tmp_path: Path, detector: KnownFaces) -> None:
    picture(tmp_path / "in/1.png", 1)
    detector.faces = {1: (face(200),)}
    for _ in range(2):
        report = align_folder(tmp_path / "in", tmp_path / "in/crops", OPTIONS)
    assert report["sources"] == 1


def test_two_files_of_one_name_give_two_crops(tmp_path: Path, detector: KnownFaces) -> None:
    picture(tmp_path / "in/a.png", 1)
    shutil.copy(tmp_path / "in/a.png", tmp_path / "in/a.bmp")  # told by content, so the ending does not matter
    detector.faces = {1: (face(200),)}
    align_folder(tmp_path / "in", tmp_path / "out", OPTIONS)
    assert sorted(r["path"] for r in rows(tmp_path / "out/images.csv")) == ["a_bmp_0.png", "a_png_0.png"]


def test_nothing_to_align_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        align_folder(tmp_path / "absent", tmp_path / "out", OPTIONS)
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="holds no picture"):
        align_folder(tmp_path / "in", tmp_path / "out", OPTIONS)


def test_outside_share_counts_area() -> None:
    matrix = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])
    assert outside_share(matrix, 96, (96, 96)) == 0
    assert outside_share(matrix, 96, (96, 48)) == pytest.approx(0.5, abs=0.02)
    assert outside_share(matrix, 96, (48, 48)) == pytest.approx(0.75, abs=0.02)


def test_the_command_on_a_photograph(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the embedded detector, from the command line: four people, four crops."""
    (tmp_path / "in").mkdir()
    shutil.copy(photos / "group.jpg", tmp_path / "in/group.jpg")
    arguments = ["align", str(tmp_path / "in"), str(tmp_path / "out"), "--size", "64", "--device", "cpu"]
    arguments += ["--format", "jpg"]
    assert main(arguments) == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["crops"] == 4 and "4 crops" in capsys.readouterr().out
    assert len(list((tmp_path / "out").glob("group*.jpg"))) == 4
    assert main([*arguments, "--confidence", "2"]) == 2


def test_the_second_face_of_a_photo_and_the_first_of_its_namesake_are_two_files(
    tmp_path: Path, detector: KnownFaces
) -> None:
    picture(tmp_path / "in/photo.png", 2)
    picture(tmp_path / "in/photo_1.png", 1)
    detector.faces = {1: (face(200),), 2: (face(160, (120, 200)), face(160, (290, 200)))}
    report = align_folder(tmp_path / "in", tmp_path / "out", OPTIONS)
    table = rows(tmp_path / "out/images.csv")
    pairs = [(r["path"], r["source"]) for r in table]
    assert pairs == [("photo_0.png", "photo.png"), ("photo_1.png", "photo.png"), ("photo_1_0.png", "photo_1.png")]
    assert report["crops"] == 3 == len(list((tmp_path / "out").glob("*.png")))


def test_names_that_would_still_collide_are_refused(tmp_path: Path, detector: KnownFaces) -> None:
    for name in ("a.png", "a.bmp", "a_bmp.jpg"):
        picture(tmp_path / "in" / name, 1)
    with pytest.raises(DataError, match=r"a\.bmp and a_bmp\.jpg"):
        align_folder(tmp_path / "in", tmp_path / "out", OPTIONS)
    (tmp_path / "in/a_bmp.jpg").unlink()
    (tmp_path / "in/a.bmp").unlink()
    detector.faces = {1: (face(200),)}
    (tmp_path / "out").mkdir(exist_ok=True)
    record = {"source": "gone.png", "crops": [{"path": "a_0.png"}], "dropped": []}
    (tmp_path / "out/journal.jsonl").write_text(json.dumps(record) + "\n")
    (tmp_path / "out/a_0.png").write_bytes(b"old")
    with pytest.raises(DataError, match="a_0.png is there already"):
        align_folder(tmp_path / "in", tmp_path / "out", OPTIONS)
    assert (tmp_path / "out/a_0.png").read_bytes() == b"old"


def test_a_locale_that_is_not_utf_8(tmp_path: Path, detector: KnownFaces, latin_locale) -> None:
    picture(tmp_path / "in/\u732b.png", 1)
    detector.faces = {1: (face(200),)}
    for _ in range(2):
        align_folder(tmp_path / "in", tmp_path / "out", OPTIONS)
    assert json.loads((tmp_path / "out/report.json").read_bytes())["crops"] == 1
