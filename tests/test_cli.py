"""The command line, run in process with tiny networks and the built-in detector."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from idcodeformer.cli import main, normalise
from idcodeformer.cli.targets import plan_targets

Run = Callable[..., int]


@pytest.fixture
def restore(tiny_restorer: Path, tiny_recogniser: Path) -> Run:
    """main() of a restore line, with the tiny networks."""

    def run(*arguments: object) -> int:
        models = ["--model", tiny_restorer, "--recogniser", tiny_recogniser, "--device", "cpu"]
        return main([str(argument) for argument in [*arguments, *models]])

    return run


@pytest.fixture
def small(photos: Path, tmp_path: Path) -> Path:
    """A picture of one face, quick to detect in."""
    file = tmp_path / "small.png"
    Image.open(photos / "portrait.jpg").resize((240, 240)).save(file)
    return file


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_reference_line_works_as_it_stands(restore: Run, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "results/"
    assert restore("--input_path", photos, "--output_path", f"{out}/", "--w", "0.8", "--face_upsample") == 0
    faces = [f"group_0{n}" for n in range(4)] + ["portrait_00"]
    wanted = [f"{folder}/{face}.png" for folder in ("cropped_faces", "restored_faces") for face in faces]
    assert names(out) == sorted([*wanted, "final_results/group.png", "final_results/portrait.png"])
    for name in ("group", "portrait"):
        with Image.open(photos / f"{name}.jpg") as source, Image.open(out / f"final_results/{name}.png") as result:
            assert source.size == result.size
            assert np.abs(np.asarray(source).astype(int) - np.asarray(result)).mean() > 1


def test_normalise() -> None:
    published = ["restore", "--save-crops", "--input-path=a_b", "-w", "0.5"]
    assert normalise(["--input_path=a_b", "-w", "0.5"]) == published
    assert normalise(["restore", "--input_path=a_b"]) == ["restore", "--input-path=a_b"]
    assert normalise(["detect", "my_photo.jpg", "--draw_x", "3"]) == ["detect", "my_photo.jpg", "--draw-x", "3"]
    assert normalise([]) == [] and normalise(["--help"]) == ["--help"]


def test_output_tree_report_and_sheet(restore: Run, photos: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "out", tmp_path / "report.json"
    extras = ("--save-crops", "--compare", "--json", report, "--order", "left_to_right", "--suffix", "_x")
    assert restore("restore", photos / "group.jpg", "-o", out, "-s", "2", *extras) == 0
    crops = [f"cropped_faces/group_0{n}.png" for n in range(4)]
    faces = [f"restored_faces/group_0{n}_x.png" for n in range(4)]
    assert names(out) == ["compare/group_x.png", *crops, "final_results/group_x.png", *faces]
    assert Image.open(out / "final_results/group_x.png").size == (2320, 640)
    (entry,) = json.loads(report.read_text())["files"]
    assert entry["status"] == "restored" and entry["restored"] == 4 and entry["size"] == [1160, 320]
    lefts = [face["box"][0] for face in sorted(entry["faces"], key=lambda face: face["crop"])]
    assert lefts == sorted(lefts)
    for face in entry["faces"]:
        assert face["score"] > 0.9 and face["w"] == 0.8 and -1 <= face["id_sim_input"] <= 1


def test_strength_zero_changes_nothing_and_keep_largest_takes_one(restore: Run, photos: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    line = (photos / "group.jpg", "-o", tmp_path / "out", "--strength", "0", "--keep", "largest", "--json", report)
    assert restore(*line) == 0
    before = np.asarray(Image.open(photos / "group.jpg"))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/final_results/group.png")), before)
    (entry,) = json.loads(report.read_text())["files"]
    assert entry["restored"] == 1 and len(entry["faces"]) == 4
    assert all(face["reason"] for face in entry["faces"] if face["status"] == "skipped")


def test_no_face_is_a_normal_result(restore: Run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    Image.new("RGB", (90, 70), (10, 120, 30)).save(tmp_path / "wall.png")
    assert restore(tmp_path / "wall.png", "-o", tmp_path / "out", "-s", "2") == 0
    result = np.asarray(Image.open(tmp_path / "out/final_results/wall.png"))
    assert result.shape == (140, 180, 3) and (result == [10, 120, 30]).all()
    assert "no face found" in capsys.readouterr().out


def test_results_are_not_overwritten_unless_asked(
    restore: Run, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "out/final_results/small.png"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"mine")
    assert restore(small, "-o", tmp_path / "out") == 1
    assert file.read_bytes() == b"mine" and "exists already" in capsys.readouterr().err
    assert restore(small, "-o", tmp_path / "out", "--skip-existing") == 0
    assert file.read_bytes() == b"mine"
    assert restore(small, "-o", tmp_path / "out", "--overwrite") == 0
    assert Image.open(file).size == (240, 240)


def test_an_existing_report_is_refused_before_any_work(restore: Run, small: Path, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("mine")
    assert restore(small, "-o", tmp_path / "out", "--json", tmp_path / "r.json") == 1
    assert (tmp_path / "r.json").read_text() == "mine" and names(tmp_path / "out") == []


def test_a_report_replaces_nothing_but_a_report(
    restore: Run, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    photo, out = small.read_bytes(), tmp_path / "out"
    (tmp_path / "photo").write_bytes(photo)
    for target in (small, tmp_path / "photo", tmp_path):
        for more in ([], ["--overwrite"], ["--skip-existing"]):
            assert restore(small, "-o", out, "--json", target, *more) in (1, 2)
            assert "name" in capsys.readouterr().err
    assert restore(small, "-o", out, "--json", out / "final_results/small.png") == 2
    assert main(["detect", str(small), "--json", str(tmp_path / "photo"), "--overwrite", "--recogniser", "none"]) == 1
    assert small.read_bytes() == (tmp_path / "photo").read_bytes() == photo
    report = tmp_path / "r.json"
    report.write_bytes(b"")  # as a full disk leaves it
    assert restore(small, "-o", out, "--json", report) == 0
    assert restore(small, "-o", out, "--json", report, "--overwrite") == 0
    assert json.loads(report.read_text())["files"][0]["status"] == "restored"
    report.write_bytes(b"")
    assert main(["detect", str(small), "--json", str(report), "--recogniser", "none"]) == 0
    assert json.loads(report.read_text())


def test_an_empty_name_and_a_suffix_that_leads_away_are_refused(
    restore: Run, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small.parent)
    assert restore("", "-o", tmp_path / "out") == 2 and "empty name" in capsys.readouterr().err
    for suffix in ("/../x", "..\\x", "a/b"):
        assert restore(small, "-o", tmp_path / "out", "--suffix", suffix) == 2
        assert "leave out / and" in capsys.readouterr().err
    assert names(tmp_path) == ["small.png"]


def test_one_bad_file_does_not_lose_the_others(
    restore: Run, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a_truncated.png").write_bytes(small.read_bytes()[:2000])
    (folder / "b_text.jpg").write_text("hello")
    small.rename(folder / "c_good.png")
    report = tmp_path / "r.json"
    assert restore(folder, "-o", tmp_path / "out", "--json", report) == 1
    assert names(tmp_path / "out") == ["final_results/c_good.png"]
    told = capsys.readouterr().err
    assert "2 of 3 files" in told and "a_truncated.png is damaged" in told and "b_text.jpg is not a picture" in told
    statuses = [entry["status"] for entry in json.loads(report.read_text())["files"]]
    assert statuses == ["failed", "failed", "restored"]


def test_what_a_file_holds_is_kept(restore: Run, small: Path, tmp_path: Path) -> None:
    photo = Image.open(small).convert("RGBA")
    photo.putalpha(Image.linear_gradient("L").resize(photo.size))
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    deep = cv2.imread(str(small)).astype(np.uint16) * 257 + 3
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    assert restore(tmp_path / "turned.png", tmp_path / "deep.png", "-o", tmp_path / "out") == 0
    with Image.open(tmp_path / "out/final_results/turned.png") as turned:
        assert turned.mode == "RGBA" and turned.getexif()[0x0112] == 1
        np.testing.assert_array_equal(np.asarray(turned)[:, :, 3], np.asarray(photo)[:, :, 3])
    result = cv2.imread(str(tmp_path / "out/final_results/deep.png"), cv2.IMREAD_UNCHANGED)
    assert result.dtype == np.uint16
    np.testing.assert_array_equal(result[0], deep[0])  # far from the face: not one of 65536 levels is lost


def test_every_frame_of_an_animation_is_restored(restore: Run, small: Path, tmp_path: Path) -> None:
    frame = Image.open(small)
    frame.save(tmp_path / "a.webp", save_all=True, append_images=[frame.rotate(4)], duration=[70, 90], lossless=True)
    assert restore(tmp_path / "a.webp", "-o", tmp_path / "out", "--json", tmp_path / "r.json", "--save-crops") == 0
    with Image.open(tmp_path / "out/final_results/a.webp") as result:
        assert result.n_frames == 2
    (entry,) = json.loads((tmp_path / "r.json").read_text())["files"]
    assert [face["image"] for face in entry["faces"]] == [0, 1]
    assert "cropped_faces/a_000001_00.png" in names(tmp_path / "out")


def test_aligned_crops_go_straight_through(restore: Run, small: Path, tmp_path: Path) -> None:
    assert restore(small, "-o", tmp_path / "out", "--has_aligned") == 0
    assert names(tmp_path / "out") == ["restored_faces/small.png"]
    assert Image.open(tmp_path / "out/restored_faces/small.png").size == (64, 64)


def test_references_are_scored(restore: Run, small: Path, photos: Path, tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    assert restore(small, "-o", tmp_path / "out", "--reference", photos / "portrait.jpg", "--json", report) == 0
    (face,) = json.loads(report.read_text())["files"][0]["faces"]
    assert face["id_sim_before"] > 0.8 > face["id_sim_after"]


def test_inputs_never_share_a_result() -> None:
    given = ["a.jpg", "a.png", "A.webp", "b.png", "b.png", "sub/a.jpg"]
    targets = [target.as_posix().lower() for _, target in plan_targets([(Path(g), Path(g)) for g in given])]
    assert len(set(targets)) == len(given)
    assert targets[0] == "a_jpg" and targets[3] == "b_png" and targets[5] == "sub/a"


def test_detect_lists_draws_and_reports(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    line = ["detect", str(photos), "--draw", str(tmp_path / "d"), "--json", str(tmp_path / "f.json"), "--device", "cpu"]
    assert main(line) == 0
    assert "group.jpg: 4 faces" in capsys.readouterr().out
    assert names(tmp_path / "d") == ["group.png", "portrait.png"]
    group, portrait = json.loads((tmp_path / "f.json").read_text())
    assert len(group["faces"]) == 4 and len(portrait["faces"]) == 1
    marked = np.asarray(Image.open(tmp_path / "d/portrait.png")).astype(int)
    x0, y0 = (round(value) for value in portrait["faces"][0]["box"][:2])
    assert np.abs(marked[y0, x0 + 40] - [70, 190, 110]).max() < 3


def test_score_tells_who_is_alike(
    photos: Path, small: Path, tiny_recogniser: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "wall.png")
    report = tmp_path / "s.json"
    line = ["score", photos / "portrait.jpg", small, photos / "group.jpg", tmp_path / "wall.png", "--json", report]
    assert main([*map(str, line), "--recogniser", str(tiny_recogniser), "--threshold", "0.95", "--device", "cpu"]) == 1
    told = capsys.readouterr()
    assert "same person" in told.out and "wall.png shows no face" in told.err
    same, others, none = json.loads(report.read_text())["candidates"]
    assert same["same"] and same["best"] > 0.95 and len(others["scores"]) == 4 and none["best"] is None


def test_demo_writes_sheet_and_table(
    tiny_restorer: Path, tiny_recogniser: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    line = ["demo", "-o", tmp_path, "--model", tiny_restorer, "--recogniser", tiny_recogniser, "--device", "cpu"]
    line += ["--control", tiny_restorer, "--guide", "1", "--picture", tmp_path / "faces.jpg"]
    assert main([str(argument) for argument in line]) == 0
    wanted = {"sheet.png", "portrait_degraded.png", "portrait_restored.png", "portrait_guided.png", "faces.jpg"}
    assert wanted <= set(names(tmp_path))
    first = capsys.readouterr().out
    rows = [row.split() for row in first.splitlines() if row.startswith(("portrait", "group"))]
    assert len(rows) >= 4 and all(row[4] != row[5] for row in rows)  # image, face, detection, person, input, ...
    assert all(row[5] == row[6] for row in rows)  # the model is the control here
    assert "ID-Sim is the cosine similarity of mobileface_v2" in first  # another one than guided judges
    with Image.open(tmp_path / "faces.jpg") as faces:
        assert faces.width > 5 * 144 and faces.height > len(rows) * 144
    assert main([str(argument) for argument in line]) == 0
    assert capsys.readouterr().out == first  # the same seed, the same pixels, the same scores


def test_without_arguments_the_help_is_shown(capsys: pytest.CaptureFixture) -> None:
    assert main([]) == 2
    assert "restore" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_leaves_no_half_written_file(small: Path, tiny_restorer: Path, tmp_path: Path, root: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(200):
        (folder / f"{number:03d}.png").symlink_to(small)
    line = [sys.executable, "-m", "idcodeformer", folder, "-o", out, "--model", tiny_restorer, "--recogniser", "none"]
    with subprocess.Popen([str(part) for part in line], cwd=root, stderr=subprocess.PIPE, text=True) as process:
        while len(list(out.glob("final_results/0*.png"))) < 2 and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and "--skip-existing" in told and "Traceback" not in told
    results = names(out)
    assert 2 <= len(results) < 200 and not [name for name in results if "partial" in name]
    for name in results:
        Image.open(out / name).load()


def test_a_kept_result_is_told_and_another_photo_of_the_same_stem_is_restored(
    restore: Run, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    first, second = tmp_path / "grandma.jpg", tmp_path / "grandma.png"
    Image.open(small).save(first)
    Image.open(small).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(second)
    line = ("-o", tmp_path / "out", "--skip-existing")
    for _ in range(2):
        assert restore(first, *line) == 0
    assert "kept, the result was there" in capsys.readouterr().out
    for _ in range(2):
        assert restore(second, *line) == 0
    assert names(tmp_path / "out") == ["final_results/grandma.png", "final_results/grandma_png.png"]
    assert "grandma_png.png: kept" in capsys.readouterr().out


@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_results_of_every_format_tell_their_source(restore: Run, small: Path, tmp_path: Path, ending: str) -> None:
    from idcodeformer.files.origin import fingerprint, origin_of

    assert restore(small, "-o", tmp_path / "out", "--format", ending) == 0
    result = tmp_path / f"out/final_results/small.{ending}"
    assert origin_of(result) == fingerprint(small)
    Image.open(result).load()


def test_the_same_line_goes_on_with_its_report(restore: Run, small: Path, tmp_path: Path) -> None:
    folder, report = tmp_path / "in", tmp_path / "r.json"
    folder.mkdir()
    Image.open(small).save(folder / "a.png")
    line = (folder, "-o", tmp_path / "out", "--skip-existing", "--json", report)
    assert restore(*line) == 0
    earlier = json.loads(report.read_text())["files"]
    report.write_bytes(report.read_bytes()[:-3] + b',\n{"input": "torn')  # as a kill in the middle of a line leaves it
    Image.open(small).rotate(3).save(folder / "b.png")
    assert restore(*line) == 0
    after = json.loads(report.read_text())["files"]
    assert after[0] == earlier[0] and len(after) == 2
    assert after[1]["input"].endswith("b.png") and after[1]["restored"] == 1


def test_the_report_is_whole_after_every_file(restore: Run, small: Path, tmp_path: Path) -> None:
    from idcodeformer.files.run_report import RunReport

    report = RunReport(tmp_path / "r.json", {"version": "1"}, [])
    for number in range(3):
        report.add({"input": f"{number}\udcff", "output": "", "status": "failed"})
        held = json.loads((tmp_path / "r.json").read_bytes())["files"]
        assert [entry["input"] for entry in held] == [f"{n}\udcff" for n in range(number + 1)]


def test_planning_many_files_is_quick() -> None:
    given = [(Path(f"{n // 2}.{'jpg' if n % 2 else 'png'}"),) * 2 for n in range(30_000)]
    given += [(Path(f"d{n}/a.jpg"), Path("a.jpg")) for n in range(10_000)]
    assert len({target for _, target in plan_targets(given)}) == len(given)


def test_names_that_the_output_cannot_show_end_nothing(small: Path, tiny_restorer: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in (b"\xff.png", "\u3042.png".encode(), b"z\x1b[2J\n.png"):
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write(small.read_bytes())
    line = [sys.executable, "-m", "idcodeformer", folder, "-o", tmp_path / "out", "--model", tiny_restorer]
    line += ["--recogniser", "none", "--json", tmp_path / "r.json"]
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([str(part) for part in line], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert b"\\u3042.png" in done.stdout and b"\x1b" not in done.stdout and done.stdout.count(b"\n") == 3
    held = json.loads((tmp_path / "r.json").read_bytes())["files"]
    assert {os.fsencode(Path(entry["input"]).name) for entry in held} >= {b"\xff.png"} and len(held) == 3


def test_hidden_files_are_passed_over_and_unread_pictures_listed(
    restore: Run, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "._a.jpg").write_bytes(b"\0\5\x16\7" + bytes(60))
    (folder / "e.psd").write_bytes(b"8BPS")
    (folder / "scan.PDF").write_bytes(b"%PDF-1.7")
    (folder / "notes.txt").write_text("text")
    for ending, kind in (("jfif", "JPEG"), ("jpe", "JPEG"), ("tga", "TGA"), ("dib", "BMP")):
        Image.open(small).save(folder / f"{ending}.{ending}", kind)
    Image.open(small).save(folder / "-odd.jpg")
    Image.open(small).convert("RGB").save(folder / "two.mpo", save_all=True, append_images=[Image.new("RGB", (9, 9))])
    (folder / "broken.jpg").symlink_to(folder / "gone.jpg")
    assert restore(folder, "-o", folder) == 0
    told = capsys.readouterr()
    assert "two.png: " in told.out and "1 more picture in the file" in told.out
    told = told.err
    assert "scan.PDF: .pdf is not read" in told
    assert "e.psd: .psd is not read" in told and "broken.jpg: is a broken link" in told and "notes" not in told
    wanted = [f"final_results/{name}.png" for name in ("-odd", "dib", "jfif", "jpe", "tga", "two")]
    assert [name for name in names(folder) if "/" in name] == wanted
    assert restore(folder, "-o", folder, "--skip-existing") == 0  # results inside the source are no sources
    monkeypatch.chdir(folder)
    assert restore("-odd.jpg", "-o", tmp_path / "dash") == 0


def test_partial_files_of_killed_runs_are_removed_and_others_kept(restore: Run, small: Path, tmp_path: Path) -> None:
    final = tmp_path / "out/final_results"
    final.mkdir(parents=True)
    (final / ".big.6051270f76c5.partial").write_bytes(b"half")
    (final / ".mine.partial").write_bytes(b"mine")
    assert restore(small, "-o", tmp_path / "out") == 0
    assert names(final) == [".mine.partial", "small.png"]


def test_a_side_that_the_format_cannot_hold_is_told_before_any_work(
    restore: Run, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    Image.new("RGB", (9000, 20)).save(tmp_path / "wide.png")
    assert restore(tmp_path / "wide.png", "-o", tmp_path / "out", "--format", "webp", "-s", "2") == 1
    assert "at most 16383 px a side" in capsys.readouterr().err


def test_detect_draws_two_pictures_of_one_stem(photos: Path, tmp_path: Path, small: Path) -> None:
    Image.open(small).save(tmp_path / "small.jpg")
    line = ["detect", str(tmp_path / "small.jpg"), str(small), "--draw", str(tmp_path / "d"), "--device", "cpu"]
    assert main(line) == 0
    assert names(tmp_path / "d") == ["small_jpg.png", "small_png.png"]


@pytest.mark.skipif(os.name == "nt", reason="names that Windows forbids")
def test_control_characters_of_a_name_do_not_reach_the_terminal(
    small: Path, tiny_recogniser: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    odd = tmp_path / "a\x1b[31m\nb\x9b.png"
    small.rename(odd)
    (tmp_path / "c\x1b.png").write_bytes(b"none")
    assert main(["detect", str(odd), str(tmp_path / "c\x1b.png"), "--device", "cpu"]) == 1
    line = ["score", str(odd), str(odd), str(tmp_path / "c\x1b.png"), "--recogniser", str(tiny_recogniser)]
    assert main([*line, "--device", "cpu"]) == 1
    told = capsys.readouterr()
    for text in (told.out, told.err):
        assert "\x1b" not in text and "\x9b" not in text
    assert told.out.count(r"a\x1b[31m\nb\x9b.png") == 2 and told.err.count(r"c\x1b.png") >= 2


def test_aligned_says_what_it_leaves_out(
    restore: Run, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    line = (small, "-o", tmp_path / "out", "--aligned", "--compare", "--save-crops", "-s", "2")
    assert restore(*line) == 0
    told = capsys.readouterr().err
    assert "--aligned writes restored crops alone: --upscale, --compare, --save-crops is left out." in told
    assert names(tmp_path / "out") == ["restored_faces/small.png"]
    assert Image.open(tmp_path / "out/restored_faces/small.png").size == (64, 64)
    assert restore(small, "-o", tmp_path / "again", "--aligned") == 0
    assert "left out" not in capsys.readouterr().err


def test_face_upsampling_without_an_upscaler_is_told(
    restore: Run, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert restore(small, "-o", tmp_path / "out", "--face-upsample", "-s", "2") == 0
    assert "faces are enlarged by interpolation" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file systems of text")
def test_a_locale_of_ascii_costs_no_picture(small: Path, tiny_restorer: Path, tmp_path: Path, root: Path) -> None:
    file = tmp_path / "Bilder" / "Großmutter 写真.png"
    file.parent.mkdir()
    small.rename(file)
    line = [sys.executable, "-m", "idcodeformer", file.parent, "-o", tmp_path / "out", "--model", tiny_restorer]
    line += ["--recogniser", "none", "--device", "cpu", "--json", tmp_path / "r.json"]
    plain = {"LC_ALL": "C", "LANG": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
    run = subprocess.run([str(part) for part in line], cwd=root, env=os.environ | plain, capture_output=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.decode("ascii").count("Gro\\udcc3\\udc9fmutter") == 2  # the bytes that ASCII does not have
    (entry,) = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["files"]
    assert entry["input"].encode("utf-8", "surrogateescape") == os.fsencode(file) and entry["status"] == "restored"
    assert (tmp_path / "out/final_results" / file.name).is_file()


@pytest.mark.parametrize(("words", "code"), [(["models", "list"], 0), (["models", "verify", "nosuch"], 1)])
def test_what_aborts_after_the_work_does_not_change_how_it_ended(words: list[str], code: int) -> None:
    """As threads of Ray have done while the interpreter was taken down: exit code 134 for work that was done."""
    script = (
        "import atexit, os, runpy, sys, types; atexit.register(os.abort); "
        "sys.modules['ray'] = types.ModuleType('ray'); "
        f"sys.argv = ['idcodeformer', *{words!r}]; runpy.run_module('idcodeformer', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == code and (done.stdout if code == 0 else done.stderr).endswith("\n")
