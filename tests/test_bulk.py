"""Bulk runs: every picture exactly once, whatever dies; results whole or not there; a target has one set of options."""
from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from PIL import Image

from idcodeformer.batch import ModelChoice, RestoreJob, RestoreSettings
from idcodeformer.errors import BadImage, BadOption, BadTarget
from idcodeformer.types import RestoreOptions

fsspec = pytest.importorskip("fsspec")
pyarrow = pytest.importorskip("pyarrow")

from idcodeformer.bulk import BulkSettings, manifest  # noqa: E402
from idcodeformer.bulk import work as stage  # noqa: E402
from idcodeformer.bulk.listing import Item, in_part, items, result_name  # noqa: E402
from idcodeformer.bulk.places import Place, read_url  # noqa: E402
from idcodeformer.bulk.plan import make_plan, read_shard  # noqa: E402
from idcodeformer.bulk.run import estimate, run_bulk  # noqa: E402
from idcodeformer.bulk.work import Restorer, Writer, fetch  # noqa: E402

HASHES = {"model_sha256": "m", "options_sha256": "o"}


@pytest.fixture(scope="module")
def _loaded() -> dict[str, RestoreJob]:
    return {}


@pytest.fixture(autouse=True)
def _one_load(_loaded: dict[str, RestoreJob], monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of this process share their networks, where they were asked for the same."""
    real = stage._loaded

    def loaded(asked: BulkSettings) -> RestoreJob:
        key = f"{asked.restore.to_dict()} {asked.people!r}"
        if key not in _loaded:
            _loaded[key] = real(asked)
        return _loaded[key]

    monkeypatch.setattr(stage, "_loaded", loaded)


@pytest.fixture
def source(tmp_path: Path, photos: Path) -> Path:
    """Five pictures: two with one face, one with four, one with none, one that is none."""
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    portrait = Image.open(photos / "portrait.jpg").convert("RGB")
    portrait.resize((160, 160)).save(folder / "a.jpg", quality=95)
    portrait.resize((200, 200)).save(folder / "a.png")
    group = Image.open(photos / "group.jpg").convert("RGB")
    group.resize((580, 160)).save(folder / "deep/group.jpg", quality=95)
    Image.new("RGB", (60, 40), (200, 10, 90)).save(folder / "deep/plain.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / "notes.txt").write_text("x")
    return folder


@pytest.fixture
def settings(source: Path, tmp_path: Path, tiny_restorer: Path, tiny_recogniser: Path) -> Callable[..., BulkSettings]:
    def make(**values: object) -> BulkSettings:
        models = ModelChoice(str(tiny_restorer), recogniser=str(tiny_recogniser), parser="none", device="cpu")
        usual = {"source": str(source), "target": str(tmp_path / "out"), "restore": RestoreSettings(models=models)}
        return BulkSettings(**usual | values)  # type: ignore[arg-type]

    return make


@pytest.fixture
def served(source: Path) -> Iterator[str]:
    """The address of a server that hands out the files of ``source``."""
    pytest.importorskip("aiohttp")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(source)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def work(settings: BulkSettings, run: str = "1-1-test") -> list[dict]:
    """The stages of a run in this process, without Ray."""
    place = Place(settings.target)
    plan = make_plan(settings, place, run)
    worker, writer, out = Restorer(settings, run), Writer(settings.target, settings.part, **HASHES), []
    for shard in plan.shards:
        out += writer(worker(fetch(pyarrow.Table.from_pylist(read_shard(place, shard))))).to_pylist()
    return out


def pictures(settings: BulkSettings) -> dict[str, dict]:
    rows = [row for row in manifest.read_rows(Place(settings.target)) if row["kind"] == "picture"]
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: row for row in rows}


# -- what there is to do ----------------------------------------------------------------------------------------------


def test_a_folder_gives_its_pictures_and_not_its_results(source: Path) -> None:
    (source / "results/pictures").mkdir(parents=True)
    (source / "results/pictures/a.png").write_bytes(b"x")
    found = list(items(str(source), str(source / "results")))
    assert [item.key for item in found] == ["a.jpg", "a.png", "broken.jpg", "deep/group.jpg", "deep/plain.png"]
    assert found[3].url == str(source / "deep/group.jpg")
    with pytest.raises(BadImage, match="does not exist"):
        list(items(str(source / "gone")))


def test_lists_name_pictures_ids_and_people(source: Path) -> None:
    from pyarrow import parquet

    rows = [{"url": "a.jpg", "id": "7", "person": "Ada"}, {"url": "memory://x/y.png", "id": None, "person": None}]
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, source / "list.parquet")
    (source / "list.csv").write_text("id,url,person\n7,a.jpg,Ada\n,memory://x/y.png,\n")
    wanted = [Item("7", f"{source}/a.jpg", "Ada"), Item("x/y.png", "memory://x/y.png")]
    assert list(items(str(source / "list.parquet"))) == list(items(str(source / "list.csv"))) == wanted
    (source / "list.txt").write_text("# mine\na.jpg\n\nhttps://host/b.png?key=1\n")
    assert [item.key for item in items(str(source / "list.txt"))][1] == "host/b.png"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("url,id\na.jpg,../../x\n", "outside the target"),
        ("url,id\na.jpg,1\nb.jpg,1\n", "twice"),
        ("a,b\n1,2\n", "column"),
        ("url\n//\n", "is no picture"),
    ],
)
def test_lists_that_would_do_harm_are_refused(source: Path, text: str, told: str) -> None:
    (source / "list.csv").write_text(text)
    with pytest.raises(BadOption, match=told):
        list(items(str(source / "list.csv")))


@pytest.mark.parametrize("wrong", [{"url": 5}, {"url": b"\xff"}, {"url": "a.jpg", "id": 1.5}, {"url": ["a.jpg"]}])
def test_columns_that_hold_no_texts_are_refused(source: Path, wrong: dict) -> None:
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([wrong]), source / "list.parquet")
    with pytest.raises(BadOption, match="make it one of texts"):
        list(items(str(source / "list.parquet")))
    parquet.write_table(pyarrow.Table.from_pylist([{"url": "a.jpg", "id": 7}]), source / "list.parquet")
    assert [item.key for item in items(str(source / "list.parquet"))] == ["7"]


def test_pictures_come_over_http_and_what_is_missing_is_told(
    source: Path, served: str, settings: Callable[..., BulkSettings]
) -> None:
    (source / "list.txt").write_text(f"{served}/a.jpg\n{served}/gone.jpg\n{served}/deep/group.jpg?x=1\n")
    asked = settings(source=f"{served}/list.txt")
    done = {row["key"].partition("/")[2]: row["status"] for row in work(asked)}
    assert done == {"a.jpg": "restored", "gone.jpg": "failed", "deep/group.jpg": "restored"}
    told = next(row["reason"] for row in pictures(asked).values() if row["status"] == "failed")
    assert f"{served}/gone.jpg cannot be read (not found)" in told
    with pytest.raises(BadImage, match="no folder that can be listed; give a list"):
        list(items(served))


def test_no_two_pictures_share_a_result() -> None:
    stems = ["a", "a.png", "a.jpg", "a.raw", "a.png.png", "a.jpg.png", "a.jpg.jpg", "a.raw.png", "a.txt", "a.gif"]
    keys = [f"{folder}{stem}{end}" for folder in ("", "d/") for stem in stems for end in ("", ".png", ".jpg", ".gif")]
    for ending in (".png", ".jpg"):
        results = [result_name(key, ending) for key in dict.fromkeys(keys)]
        assert len(set(results)) == len(results)
    assert (result_name("d/a.png", ".png"), result_name("d/a.jpg", ".png")) == ("d/a.png", "d/a.jpg.png")


def test_parts_share_the_pictures_out() -> None:
    keys = [f"scan{n}.jpg" for n in range(400)]
    shares = [[key for key in keys if in_part(key, (part, 4))] for part in range(1, 5)]
    assert sorted(key for share in shares for key in share) == sorted(keys)
    assert all(70 < len(share) < 130 for share in shares)


def test_a_part_looks_for_its_own_pictures_in_every_part(settings: Callable[..., BulkSettings]) -> None:
    place = Place("memory://parts")
    place.remove_folder("")
    keys = [f"scan{n}.jpg" for n in range(40)]
    for number in (1, 2):
        mine = [key for key in keys if in_part(key, (number, 2))]
        manifest.write_piece(place, (number, 2), [{"kind": "picture", "key": key} for key in mine])
    assert len(manifest.done(place)) == 40
    assert len(manifest.done(place, (1, 4))) == sum(in_part(key, (1, 4)) for key in keys) > 0
    manifest.join(place, (1, 1))  # joins its own pieces alone
    assert len(place.names(manifest.MANIFEST)) == 2


def test_settings_out_of_range(settings: Callable[..., BulkSettings]) -> None:
    for wrong in ({"part": (3, 2)}, {"part": (0, 2)}, {"workers": -1}, {"limit": -1}):
        with pytest.raises(BadOption):
            settings(**wrong)


def test_the_command_line_gives_settings() -> None:
    from idcodeformer.cli import build_parser
    from idcodeformer.cli.bulk import settings_of

    line = ["bulk", "in", "s3://b/out", "-w", "0.3", "--part", "3/16", "--format", "jpg", "--keep", "largest"]
    asked = settings_of(build_parser().parse_args([*line, "--workers", "4", "--limit", "7", "--model", "x"]))
    assert (asked.source, asked.target, asked.part, asked.workers, asked.limit) == ("in", "s3://b/out", (3, 16), 4, 7)
    assert asked.restore.options.w == 0.3 and asked.restore.detect_options.keep == "largest"
    assert asked.restore.format == "jpg" and asked.restore.models.restorer == "x"
    with pytest.raises(BadOption, match="--part"):
        settings_of(build_parser().parse_args([*line, "--part", "3"]))


# -- what becomes of it -----------------------------------------------------------------------------------------------


def test_each_picture_is_what_a_pipeline_alone_makes_of_it(settings: Callable[..., BulkSettings]) -> None:
    asked = settings()
    done = {row["key"]: row for row in work(asked)}
    assert {key: row["status"] for key, row in done.items()} == {
        "a.jpg": "restored", "a.png": "restored", "deep/group.jpg": "restored", "deep/plain.png": "no face",
        "broken.jpg": "failed",
    }  # fmt: skip
    job = stage._loaded(asked)
    for key, row in pictures(asked).items():
        if row["status"] == "failed":
            assert "broken.jpg" in row["reason"] and not row["output"]
            continue
        data, outcome = job.attempt_bytes(Path(asked.source, key).read_bytes(), key)
        alone, here = (np.asarray(Image.open(io.BytesIO(d))).astype(int)
                       for d in (data, Path(asked.target, row["output"]).read_bytes()))  # fmt: skip
        assert np.abs(alone - here).max() <= 1
        assert row["faces"] == len(outcome.faces) and (row["width"], row["height"]) == outcome.size
    faces = [row for row in manifest.read_rows(Place(asked.target)) if row["kind"] == "face"]
    assert Counter(row["key"] for row in faces) == {"a.jpg": 1, "a.png": 1, "deep/group.jpg": 4}
    assert all(row["w"] == pytest.approx(0.8) and row["x1"] > row["x0"] for row in faces)
    assert {row["status"] for row in faces} == {"restored"}


def test_what_is_done_is_not_done_again(settings: Callable[..., BulkSettings]) -> None:
    assert len(work(settings(limit=2))) == 2
    written = {key: Path(settings().target, row["output"]) for key, row in pictures(settings()).items()}
    before = {key: path.stat().st_mtime_ns for key, path in written.items()}
    assert len(work(settings())) == 3
    assert work(settings()) == []
    after = pictures(settings())
    assert len(after) == 5
    assert before == {key: path.stat().st_mtime_ns for key, path in written.items()}


def test_one_bad_picture_does_not_cost_its_group(
    settings: Callable[..., BulkSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    from idcodeformer.pipeline import FacePipeline

    real = FacePipeline.__call__

    def call(self, images, *given, **named):
        if any(image.shape[-1] == 160 for image in images):
            raise RuntimeError("this one only")
        return real(self, images, *given, **named)

    monkeypatch.setattr(FacePipeline, "__call__", call)
    work(settings())
    rows = pictures(settings())
    assert {key for key, row in rows.items() if row["status"] == "failed"} == {"a.jpg", "broken.jpg"}
    assert "this one only" in rows["a.jpg"]["reason"] and rows["deep/group.jpg"]["faces"] == 4


def test_a_picture_that_ends_its_worker_is_tried_twice_and_set_aside(
    settings: Callable[..., BulkSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(BaseException):
        pass

    tried: list[list[str]] = []
    real = stage.restore_group

    def group(job, rows):
        tried.append([row["key"] for row in rows])
        if "a.png" in tried[-1]:
            raise Died
        return real(job, rows)

    monkeypatch.setattr(stage, "restore_group", group)
    for _ in range(2):  # the worker is started again with the same pictures each time
        with pytest.raises(Died):
            work(settings())
    assert pictures(settings()) == {}
    done = {row["key"]: row["status"] for row in work(settings())}
    assert done["a.png"] == "set aside" and done["a.jpg"] == done["deep/group.jpg"] == "restored"
    assert sum("a.png" in some for some in tried) == 2
    assert "ended its worker 2 times" in pictures(settings())["a.png"]["reason"]


def test_faces_are_named_by_a_people_file(settings: Callable[..., BulkSettings], tmp_path: Path) -> None:
    from idcodeformer.detection import load_detector
    from idcodeformer.identity.people import load_people, save_people
    from idcodeformer.identity.recogniser import load_recogniser

    asked = settings()
    (tmp_path / "family/Ada").mkdir(parents=True)
    Image.open(Path(asked.source, "a.png")).save(tmp_path / "family/Ada/1.png")
    recogniser = load_recogniser(asked.restore.models.recogniser, "cpu")
    people = load_people(tmp_path / "family", load_detector(device="cpu"), recogniser)
    content = save_people(people, tmp_path / "family.safetensors").read_bytes()
    work(settings(people=content))
    faces = [row for row in manifest.read_rows(Place(asked.target)) if row["kind"] == "face"]
    assert [row["person"] for row in faces if row["key"] == "a.png"] == ["Ada"]


# -- the target -------------------------------------------------------------------------------------------------------


def test_a_full_disk_stops_the_run_and_loses_nothing(
    settings: Callable[..., BulkSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = settings(target="memory://full")
    place = Place(asked.target)
    place.remove_folder("")
    real = type(place.fs).pipe_file
    plan = make_plan(asked, place, "1-1-x")
    rows = fetch(pyarrow.Table.from_pylist(read_shard(place, plan.shards[0])))
    results = Restorer(asked, "1-1-x")(rows)

    def full(self, path, value, **named):
        if path.endswith("plain.png"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, path, value, **named)

    monkeypatch.setattr(type(place.fs), "pipe_file", full)
    told = Writer(asked.target, asked.part, **HASHES)(results).to_pylist()
    assert {row["status"] for row in told} == {"unwritten"}
    assert "the disk is full" in told[0]["error"] and "goes on from here" in told[0]["error"]
    assert len(manifest.done(place)) == 0
    monkeypatch.undo()
    assert len(work(asked)) == 5
    assert Counter(row["status"] for row in pictures(asked).values()) == {"restored": 3, "no face": 1, "failed": 1}


def test_a_name_that_the_target_cannot_take_costs_its_picture_alone(settings: Callable[..., BulkSettings]) -> None:
    asked = settings()
    long, below = "x" * 300, "a.png/b.png"
    rows = [f"{key},a.jpg" for key in ("a.png", long, below, "fine")]
    Path(asked.source, "list.csv").write_text("id,url\n" + "\n".join(rows))
    work(settings(source=f"{asked.source}/list.csv", limit=1))
    work(settings(source=f"{asked.source}/list.csv"))
    told = pictures(asked)
    assert {key: row["status"] for key, row in told.items()} == {
        "a.png": "restored", "fine": "restored", long: "failed", below: "failed",
    }  # fmt: skip
    assert "give it another id" in told[below]["reason"] and not told[below]["output"]


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(str(tmp_path / "out"))
    place.write("a/b.png", b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(BadTarget, match="the disk is full"):
        place.write("a/b.png", b"new")
    assert place.read("a/b.png") == b"old" and place.names("") == ["a/b.png"]


def test_a_target_takes_one_set_of_options(settings: Callable[..., BulkSettings]) -> None:
    place, told, usual = Place("memory://claimed"), settings().told("abc"), settings().told("")
    place.remove_folder("")
    older = json.loads(json.dumps(told))
    del older["options"]["colour"]  # an option that came with a newer version
    manifest.claim(place, older, "0", usual)
    manifest.claim(place, told, "1", usual)
    place.remove(manifest.RUN)
    manifest.claim(place, told, "1", usual)
    manifest.claim(place, told, "1", usual)
    other = json.loads(json.dumps(told))
    other["options"]["w"] = 0.5
    with pytest.raises(BadTarget, match=r"other options: options.w \(0.8 there, 0.5 asked\)"):
        manifest.claim(place, other, "2", usual)
    with pytest.raises(BadTarget, match="other options: another people file;"):
        manifest.claim(place, told | {"people_sha256": "0" * 64}, "3", usual)
    for damaged in (b"[" * 100_000, b'{"options": 5}', b"null"):
        place.write(manifest.RUN, damaged)
        with pytest.raises(BadTarget, match="is damaged"):
            manifest.claim(place, told, "1", usual)
    place.remove(manifest.RUN)
    manifest.claim(place, told, "1", usual, write=False)
    assert place.read(manifest.RUN) is None
    manifest.write_piece(place, (1, 1), [{"kind": "picture", "key": "a"}])
    with pytest.raises(BadTarget, match="is gone"):
        manifest.claim(place, told, "1", usual)


def test_pieces_are_joined_and_failed_pictures_forgotten_on_demand() -> None:
    place = Place("memory://joined")
    place.remove_folder("")
    for key, status in (("a", "restored"), ("b", "failed"), ("c", "set aside")):
        row = {"key": key, "status": status}
        manifest.write_piece(place, (1, 1), [row | {"kind": "picture"}, row | {"kind": "face", "face": 0}])
    first = place.names(manifest.MANIFEST)[0]
    kept = place.read(first)
    manifest.join(place, (1, 1))
    place.write(first, kept)  # as a run leaves it that is killed while it removes the pieces
    assert len(place.names(manifest.MANIFEST)) == 2
    assert sorted((row["key"], row["kind"]) for row in manifest.read_rows(place)) == [
        (key, kind) for key in "abc" for kind in ("face", "picture")
    ]
    manifest.join(place, (1, 1), drop_failed=True)
    assert [row["key"] for row in manifest.read_rows(place)] == ["a", "a"]
    assert len(manifest.done(place)) == 1


def test_addresses_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="nonsense://x"):
        Place("nonsense://x")
    with pytest.raises(BadImage, match="cannot be read"):
        read_url(str(tmp_path / "gone.png"))


def test_dry_run_counts_measures_and_refuses_as_a_run_does(
    settings: Callable[..., BulkSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, seconds, failures = estimate(settings(), sample=2)
    assert plan.to_do == 5 and len(plan.sample) == 2 and seconds > 0
    assert not Path(settings().target).exists()
    asked = settings()
    other = RestoreSettings(RestoreOptions(w=0.3), models=asked.restore.models)
    place, told = Place(asked.target), asked.told("abc")
    manifest.claim(place, told, "0", told)
    before = place.names("")
    with pytest.raises(BadTarget, match="options.w .0.8 there, 0.3 asked"):
        estimate(settings(restore=other), sample=1)
    assert place.names("") == before


def test_dry_run_tells_what_fails_and_how_long_it_takes(
    settings: Callable[..., BulkSettings], capsys: pytest.CaptureFixture
) -> None:
    from idcodeformer.cli import main
    from idcodeformer.cli.bulk import _duration

    asked = settings()
    models = ["--model", asked.restore.models.restorer, "--recogniser", asked.restore.models.recogniser]
    assert main(["bulk", asked.source, asked.target, "--dry-run", "--parser", "none", "--workers", "1", *models]) == 0
    told = capsys.readouterr()
    assert "5 pictures to do, 0 done before" in told.out and "(5 tried), so about 1 min with 1 worker\n" in told.out
    assert "broken.jpg" in told.err and told.err.count("failed:") == 1
    assert [_duration(s) for s in (7200, 200 * 3600, 600)] == ["2.0 hours", "200 hours (8 days)", "10 min"]


def test_ray_is_asked_for_by_name(settings: Callable[..., BulkSettings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BadOption, match=r'pip install "ray\[data\]"'):
        run_bulk(settings())


# -- for real: Ray, processes that are killed, an S3 server -----------------------------------------------------------

POISON = """
import hashlib, os, signal
real = hashlib.sha256
def sha256(data=b"", **named):  # the fingerprint of a picture, taken while it is decoded
    if len(data) > 100 and bytes(data[8:10]) == b"\\xff\\xd8" and b"POISON" in bytes(data):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(data, **named)
hashlib.sha256 = sha256
"""


def _aws() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


@pytest.fixture
def line(root: Path, tmp_path: Path, tiny_restorer: Path, tiny_recogniser: Path) -> SimpleNamespace:
    """A command line in a process of its own, in which a picture with POISON in it kills whoever decodes it."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(POISON)
    # Ray gives its workers the niceness 15, with which they wait for ever beside other tests.
    path = os.pathsep.join([str(tmp_path / "site"), str(root)])
    env = os.environ | {"RAY_worker_niceness": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def start(source: object, target: object) -> subprocess.Popen:
        models = ["--model", str(tiny_restorer), "--recogniser", str(tiny_recogniser), "--parser", "none"]
        words = [sys.executable, "-m", "idcodeformer", "bulk", str(source), str(target), "--workers", "2", *models]
        return subprocess.Popen(words, cwd=tmp_path, env=env | _aws(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def ends(process: subprocess.Popen, code: int) -> str:
        told = process.communicate(timeout=540)[0].decode()
        assert process.returncode == code, told
        assert "Traceback" not in told
        return told

    return SimpleNamespace(start=start, ends=ends)


@pytest.fixture
def many(tmp_path: Path, photos: Path) -> Path:
    """Seventy small pictures and one that kills."""
    folder = tmp_path / "many"
    folder.mkdir()
    portrait = Image.open(photos / "portrait.jpg").convert("RGB")
    for number in range(70):
        portrait.resize((96 + number, 96 + number)).save(folder / f"{number:02d}.jpg")
    portrait.resize((90, 90)).save(folder / "33-poison.jpg", comment=b"POISON")
    return folder


@pytest.mark.slow
def test_every_picture_exactly_once_through_killed_drivers_and_workers(line, many: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "out"
    first = line.start(many, out)
    deadline = time.monotonic() + 400
    while not list(out.glob("manifest/*.parquet")) and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    some = {row["key"] for row in manifest.read_rows(Place(str(out)))}
    assert some
    told = line.ends(line.start(many, out), 1)
    assert "ended its worker 2 times" in told and f"({len(some)} were before)" in told
    rows = [row for row in manifest.read_rows(Place(str(out))) if row["kind"] == "picture"]
    assert sorted(row["key"] for row in rows) == sorted(path.name for path in many.iterdir())
    assert {row["key"] for row in rows if row["status"] == "set aside"} == {"33-poison.jpg"}
    results = {f"pictures/{path.name}" for path in (out / "pictures").iterdir()}
    assert results == {row["output"] for row in rows if row["output"]} and len(results) == 70
    for result in results:
        Image.open(out / result).load()
    assert not list(out.rglob("*.partial"))
    assert [path.name for path in (out / "_bulk").rglob("*") if path.is_file()] == ["run.json"]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an S3 server in this process with a bucket "archive"."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://127.0.0.1:{port}"
    for name, value in {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_ENDPOINT_URL": address,
                        "AWS_DEFAULT_REGION": "us-east-1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with urlopen(Request(f"{address}/moto-api/reset", method="POST")):  # every server of a process shares its buckets
        pass
    s3fs.S3FileSystem().mkdir("archive")
    yield address
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_an_s3_server_is_source_and_target(s3: str, settings: Callable[..., BulkSettings], source: Path) -> None:
    import s3fs

    s3fs.S3FileSystem().put(str(source) + "/", "archive/in/", recursive=True)
    asked = settings(source="s3://archive/in", target="s3://archive/out")
    assert len(work(asked)) == 5 and work(asked) == []
    rows = pictures(asked)
    assert Counter(row["status"] for row in rows.values()) == {"restored": 3, "no face": 1, "failed": 1}
    data = s3fs.S3FileSystem().cat_file("archive/out/" + rows["deep/group.jpg"]["output"])
    assert Image.open(io.BytesIO(data)).size == (580, 160)


@pytest.mark.slow
def test_ray_writes_to_an_s3_server(s3: str, line, source: Path) -> None:
    pytest.importorskip("ray")
    told = line.ends(line.start(source, "s3://archive/ray"), 1)
    assert "5 pictures done" in told and "broken.jpg" in told
    rows = [row for row in manifest.read_rows(Place("s3://archive/ray")) if row["kind"] == "picture"]
    assert len(rows) == 5 and Counter(row["status"] for row in rows)["restored"] == 3
    assert "0 pictures done (5 were before)" in line.ends(line.start(source, "s3://archive/ray"), 1)


def test_torch_is_left_as_it_was_without_threads(settings: Callable[..., BulkSettings]) -> None:
    before = torch.get_num_threads()
    Restorer(settings(), "1-1-x")
    assert torch.get_num_threads() == before
