"""Signals at random moments of every long command: what is there is whole, no input changes, the next run goes on."""
from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from cutting import ALL, CODES, KILL, Cutting
from PIL import Image

pytestmark = [pytest.mark.skipif(os.name == "nt", reason="POSIX signals"), pytest.mark.usefixtures("_answered")]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def portraits(folder: Path, photos: Path, count: int) -> dict[str, bytes]:
    """So many small pictures of a face, each of another size."""
    folder.mkdir()
    portrait = Image.open(photos / "portrait.jpg").convert("RGB")
    for number in range(count):
        portrait.resize((96 + number, 96 + number)).save(folder / f"{number:03d}.jpg")
    return contents(folder)


def whole(folder: Path) -> set[str]:
    """The names of the results in ``folder``, each of which opens to its last pixel."""
    found = {path for path in folder.glob("*") if not path.name.startswith(".")}
    for path in found:
        with Image.open(path) as image:
            image.load()
    return {path.stem for path in found}


@pytest.mark.slow
def test_restore(tmp_path: Path, photos: Path, tiny_restorer: Path, tiny_recogniser: Path) -> None:
    count = 40
    before = portraits(tmp_path / "in", photos, count)
    results, out = tmp_path / "out/final_results", tmp_path / "out"
    line = ["-m", "idcodeformer", "restore", tmp_path / "in", "-o", out, "--skip-existing", "--parser", "none"]
    line += ["--json", tmp_path / "report.json", "--model", tiny_restorer, "--recogniser", tiny_recogniser]
    cutting = Cutting(line, tmp_path, lambda: len(list(results.glob("[0-9]*"))), most=0.1)
    done: set[str] = set()
    for number in ALL:
        code, told = cutting.cut(number, cutting.dice.randint(1, 5))
        assert code == CODES[number], told
        now = whole(results)
        assert done < now and len(now) < count
        done = now
        if code > 0:  # a signal that can be answered leaves nothing half written
            assert not list(out.rglob("*.partial"))
    cutting.ends()
    assert len(whole(results)) == count and not list(out.rglob("*.partial"))
    assert contents(tmp_path / "in") == before
    entries = json.loads((tmp_path / "report.json").read_text())["files"]
    assert sorted(Path(entry["input"]).name for entry in entries) == sorted(before)


# -- downloads --------------------------------------------------------------------------------------------------------

FETCH = """
import sys
from dataclasses import replace
from idcodeformer.weights import registry
url, size, sha256, folder = sys.argv[1:]
row = replace(registry.by_name("codeformer"), urls=(url,), bytes=int(size), sha256=sha256)
registry.WEIGHTS = (row,)
from idcodeformer.weights import download
download.PIECE = 1 << 14
from idcodeformer.cli import main
sys.argv = ["idcodeformer", "models", "download", "codeformer", "--to", folder]
sys.exit(main())
"""
DATA = random.Random(16).randbytes(3_000_000)


@pytest.fixture
def slow_server() -> Iterator[ThreadingHTTPServer]:
    """Sends DATA from any byte on, 3 MB a second."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            start = int(asked.split("=")[1].rstrip("-")) if asked else 0
            self.server.starts.append(start)  # type: ignore[attr-defined]
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{len(DATA) - 1}/{len(DATA)}")
            self.send_header("Content-Length", str(len(DATA) - start))
            self.end_headers()
            try:
                for place in range(start, len(DATA), 30_000):
                    self.wfile.write(DATA[place : place + 30_000])
                    time.sleep(0.01)
            except OSError:  # the other side has ended, as it should
                pass

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.starts = []  # type: ignore[attr-defined]
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("numbers", [[KILL], pytest.param(ALL, marks=pytest.mark.slow)])
def test_download(tmp_path: Path, slow_server: ThreadingHTTPServer, numbers: list[int]) -> None:
    url, folder = f"http://127.0.0.1:{slow_server.server_port}/codeformer.pth", tmp_path / "models"
    line = ["-c", FETCH, url, len(DATA), hashlib.sha256(DATA).hexdigest(), folder]
    partial = folder / "codeformer.pth.partial"
    cutting = Cutting(line, tmp_path, lambda: partial.stat().st_size if partial.exists() else 0, most=0.05)
    sizes = [0]
    for number in numbers:
        code, told = cutting.cut(number, 100_000)
        assert code == CODES[number], told
        assert [path.name for path in folder.iterdir()] == [partial.name]
        there = partial.read_bytes()
        assert DATA.startswith(there) and sizes[-1] < len(there) < len(DATA)
        sizes.append(len(there))
    assert "verified" in cutting.ends()
    assert contents(folder) == {"codeformer.pth": DATA}
    assert slow_server.starts == sizes  # type: ignore[attr-defined]


# -- clips ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_clips(tmp_path: Path, photos: Path, tiny_restorer: Path) -> None:
    pytest.importorskip("av")
    from video_clips import make_clip

    from idcodeformer.video.reading import Clip

    face = np.asarray(Image.open(photos / "portrait.jpg").convert("RGB").resize((160, 200)))
    clip, out = tmp_path / "clip.mp4", tmp_path / "out/final_results"
    make_clip(clip, [np.roll(face, n % 5, 1) for n in range(130)], steady=True)
    before = clip.read_bytes()

    def line(folder: str) -> list[object]:
        return ["-m", "idcodeformer", "restore", clip, "-o", tmp_path / folder, "--model", tiny_restorer, "--codec",
                "ffv1", "--recogniser", "none", "--parser", "none"]  # fmt: skip

    def written() -> int:  # bytes of what was found so far, and of segments of four seconds
        total = 0
        for path in out.glob(".clip*.parts/**/*"):
            with suppress(FileNotFoundError):  # the command clears up meanwhile
                total += path.stat().st_size if path.is_file() else 0
        return total

    cutting = Cutting(line("out"), tmp_path, written)
    for number in ALL:
        code, told = cutting.cut(number)
        assert code == CODES[number], told
        assert [path.name for path in out.iterdir() if not path.name.startswith(".")] == []
        assert clip.read_bytes() == before
    cutting.ends()
    Cutting(line("unbroken"), tmp_path, written).ends()
    assert [path.name for path in out.iterdir()] == ["clip.mkv"]
    made, wanted = (list(Clip(tmp_path / f"{name}/final_results/clip.mkv").frames()) for name in ("out", "unbroken"))
    assert len(made) == len(wanted) == 130
    assert [frame.pts for frame in made] == [frame.pts for frame in wanted]
    # Where the first pass is cut, the frames in which it looks everywhere are others, and landmarks move a little.
    apart = [np.abs(a.pixels.astype(int) - b.pixels).mean() for a, b in zip(made, wanted)]
    assert max(apart) < 4  # of 255, through a network of random weights


# -- archives ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_bulk(tmp_path: Path, photos: Path, tiny_restorer: Path, tiny_recogniser: Path) -> None:
    pytest.importorskip("ray")
    from idcodeformer.bulk import manifest
    from idcodeformer.bulk.places import Place

    before, out = portraits(tmp_path / "in", photos, 240), tmp_path / "out"
    line = ["-m", "idcodeformer", "bulk", tmp_path / "in", out, "--workers", "1", "--parser", "none"]
    line += ["--model", tiny_restorer, "--recogniser", tiny_recogniser]

    def rows() -> list[dict]:
        return [row for row in manifest.read_rows(Place(str(out))) if row["kind"] == "picture"]

    cutting = Cutting(line, tmp_path, lambda: len(list(out.glob("pictures/*"))), RAY_worker_niceness="1")
    done = 0
    for number in ALL[:-1]:  # KILL of the driver is tried in test_bulk
        code, told = cutting.cut(number)
        assert code == CODES[number], told
        named, there = {row["output"] for row in rows()}, whole(out / "pictures")
        assert {Path(name).stem for name in named} <= there and done <= len(named) < len(before)
        done = len(named)
    assert f"({done} were before)" in cutting.ends()
    assert sorted(row["key"] for row in rows()) == sorted(before)
    assert {f"pictures/{path.name}" for path in (out / "pictures").iterdir()} == {row["output"] for row in rows()}
    assert len(whole(out / "pictures")) == len(before) and not list(out.rglob("*.partial"))
    assert contents(tmp_path / "in") == before
