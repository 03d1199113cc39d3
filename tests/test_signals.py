"""Signals at random moments of ``restore``: what is there is whole, no input changes, and the next run goes on."""
from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="POSIX signals")]
PICTURES = 40


def _whole(folder: Path) -> set[str]:
    """The names of the results in ``folder``, each of which opens to its last pixel."""
    found = {path for path in folder.glob("*") if not path.name.startswith(".")}
    for path in found:
        with Image.open(path) as image:
            image.load()
    return {path.stem for path in found}


@pytest.fixture
def _answered() -> Iterator[None]:
    """A signal that is ignored where the tests run (nohup, a shell's background) would be by their children too."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_answered")
def test_a_run_is_cut_off_four_times_and_ends(
    root: Path, tmp_path: Path, photos: Path, tiny_restorer: Path, tiny_recogniser: Path
) -> None:
    source, out, dice = tmp_path / "in", tmp_path / "out", random.Random(16)
    source.mkdir()
    portrait = Image.open(photos / "portrait.jpg").convert("RGB")
    for number in range(PICTURES):
        portrait.resize((96 + number, 96 + number)).save(source / f"{number:02d}.jpg")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    line = [sys.executable, "-m", "idcodeformer", "restore", str(source), "-o", str(out), "--skip-existing"]
    line += ["--json", str(tmp_path / "report.json"), "--model", str(tiny_restorer)]
    line += ["--recogniser", str(tiny_recogniser)]
    env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    results = out / "final_results"
    codes = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: -1, signal.SIGKILL: -9}
    done: set[str] = set()
    for number, code in codes.items():
        process = subprocess.Popen(line, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        aim, deadline = len(done) + dice.randint(2, 5), time.monotonic() + 400
        while process.poll() is None and len(list(results.glob("[0-9]*"))) < aim and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(dice.random() / 5)
        process.send_signal(number)
        told = process.communicate(timeout=300)[1].decode()
        assert process.returncode == code, told
        now = _whole(results)
        assert done < now and len(now) < PICTURES
        done = now
        if code > 0:  # a signal that can be answered leaves nothing half written
            assert not list(out.rglob("*.partial"))
    last = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=500)
    assert last.returncode == 0, last.stderr
    assert len(_whole(results)) == PICTURES and not list(out.rglob("*.partial"))
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    import json

    entries = json.loads((tmp_path / "report.json").read_text())["files"]
    assert sorted(Path(entry["input"]).name for entry in entries) == sorted(before)
