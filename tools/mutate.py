"""Do the tests notice? Seeded slips in a copy of the source, each against the tests that ought to fail.

    python tools/mutate.py [--seed 1] [--count 100] [--only paste nodes/detect] [--out FILE] [--seen FILE]

A slip turns a comparison, a sign or a boolean round, changes a constant, or drops a statement. The tests of an area are
run once as they are, to see that they pass and which lines each of them runs; a slip is then tried on the tests that
run its statement. Heavy packages are imported once, and each run is a fork with the copy as its folder; the working
tree is never touched. POSIX only.
"""
from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from slips import ROOT, Slip, made, slips_of

TRAINED = [f"tests/test_training/test_train_{name}.py" for name in (
    "losses", "objective", "identity", "gradients", "steps", "stages", "parser", "loop", "resume",
)]  # fmt: skip
# Area -> (files of the source, tests that ought to notice, quick ones first); a file belongs to the first that has it.
AREAS: dict[str, tuple[list[str], list[str]]] = {
    "paste": (
        ["idcodeformer/compositing/*.py"], [f"tests/test_{n}.py" for n in ("parse", "neighbours", "paste", "grain")],
    ),
    "detection": (
        ["idcodeformer/detection/*.py"],
        [f"tests/test_{n}.py" for n in ("selection", "scrfd", "registries", "verification", "detect")],
    ),
    "guidance": (
        ["idcodeformer/guidance/*.py"], [f"tests/test_{n}.py" for n in ("family", "guidance", "video_people")],
    ),
    "losses": (["training/stages/losses.py", "training/stages/perceptual.py"], [*TRAINED, "tests/test_perceptual.py"]),
    "trainer": (["training/trainer.py", "training/optim.py", "training/stages/*.py"], TRAINED),
    "nodes": (["nodes/*.py"], ["tests/test_nodes/*.py"]),
    "people": (["idcodeformer/identity/people.py", "idcodeformer/identity/known.py"], ["tests/test_people.py"]),
    "bulk": (["idcodeformer/bulk/manifest.py", "idcodeformer/bulk/listing.py"], ["tests/test_bulk.py"]),
}  # fmt: skip


def copied() -> Path:
    """A copy of what is committed."""
    folder = Path(tempfile.mkdtemp(prefix="mutate_")).resolve()
    data = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def tested(folder: Path, tests: list[str], timeout: float, plugin: Seen | None = None, into: Path | None = None) -> str:
    """killed, survived or timeout, of the tests as they stand in ``folder``; what ``plugin`` saw goes ``into``."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.chdir(folder)
        sys.path[0] = str(folder)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        stop = [] if plugin else ["-x"]
        command = ["-q", *stop, "-p", "no:cacheprovider", "-m", "not slow and not comfy and not gpu and not parity"]
        code = pytest.main([*command, *tests], [plugin] if plugin else [])
        if plugin and into:
            into.write_text(json.dumps(plugin.result()), encoding="utf-8")
        os._exit(int(code))
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "survived" if status == 0 else "killed"
        time.sleep(0.1)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout"  # an endless loop is noticed too


class Seen:
    """Which lines of the source each test runs, those of the fixtures that it shares with others included."""

    def __init__(self, folder: Path, files: list[str]):
        self.files = {str(folder / file): file for file in files}
        self.own: dict[str, set[str]] = {}
        self.shared: dict[str, set[str]] = {}
        self.uses: dict[str, list[str]] = {}
        self.took: dict[str, float] = {}
        self.failed: set[str] = set()
        self.into: set[str] = set()

    def _enter(self, frame: Any, event: str, arg: Any) -> Any:
        return self._line if frame.f_code.co_filename in self.files else None

    def _line(self, frame: Any, event: str, arg: Any) -> Any:
        if event == "line":
            self.into.add(f"{self.files[frame.f_code.co_filename]}:{frame.f_lineno}")
        return self._line

    @contextmanager
    def _to(self, lines: set[str]) -> Iterator[None]:
        before, self.into = self.into, lines
        yield
        self.into = before

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        sys.settrace(self._enter)
        threading.settrace(self._enter)
        with self._to(self.own.setdefault(item.nodeid, set())):
            yield
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        self.uses[item.nodeid] = [
            self._key(each) for name in item.fixturenames for each in item._fixtureinfo.name2fixturedefs.get(name, ())
        ]

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        if fixturedef.scope == "function":
            yield
            return
        with self._to(self.shared.setdefault(self._key(fixturedef), set())):
            yield

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.took[report.nodeid] = self.took.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.failed.add(report.nodeid)

    @staticmethod
    def _key(fixturedef: Any) -> str:
        return f"{fixturedef.baseid}:{fixturedef.argname}"

    def result(self) -> dict[str, dict[str, Any]]:
        return {
            test: {
                "lines": sorted(lines.union(*(self.shared.get(key, ()) for key in self.uses[test]))),
                "took": self.took[test],
                "failed": test in self.failed,
            }
            for test, lines in self.own.items()
        }


def seen_of(folder: Path, tests: list[str], files: list[str], timeout: float, cache: Path | None) -> dict[str, Any]:
    """Test -> the lines it runs, its seconds, whether it failed; ``cache`` keeps what is known of unchanged files."""
    known = json.loads(cache.read_text(encoding="utf-8")) if cache and cache.exists() else {}
    found: dict[str, Any] = {}
    sources = b"".join((folder / file).read_bytes() for file in sorted(files))
    for test in tests:
        key = hashlib.sha256(sources + (folder / test).read_bytes()).hexdigest()
        if known.get(test, {}).get("key") != key:
            into = folder / "seen.json"
            into.unlink(missing_ok=True)
            tested(folder, [test], 6 * timeout, Seen(folder, files), into)
            known[test] = {"key": key, "tests": json.loads(into.read_text(encoding="utf-8"))}
            if cache:
                cache.write_text(json.dumps(known), encoding="utf-8")
        found |= known[test]["tests"]
    return found


def files_of(area: str, folder: Path) -> list[str]:
    """The files of the source that an area has."""
    found: dict[str, str] = {}
    for name, (patterns, _) in AREAS.items():
        for file in (str(p.relative_to(folder)) for pattern in patterns for p in sorted(folder.glob(pattern))):
            found.setdefault(file, name)
    return [file for file, name in found.items() if name == area]


def chosen(area: str, seed: int, count: int, only: list[str], folder: Path = ROOT) -> list[Slip]:
    """As many slips from each file of an area, drawn with ``seed``."""
    draws = random.Random(f"{seed} {area}")
    files = [file for file in files_of(area, folder) if not only or any(part == area or part in file for part in only)]
    pools = [draws.sample(pool := slips_of(file, folder), len(pool)) for file in draws.sample(files, len(files))]
    rounds = [slip for n in range(max(map(len, pools), default=0)) for pool in pools for slip in pool[n : n + 1]]
    return sorted(rounds[:count], key=lambda slip: slip.file)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100, help="slips, as many from each area")
    parser.add_argument("--only", nargs="*", default=[], help=f"areas ({', '.join(AREAS)}) or parts of names of files")
    parser.add_argument("--timeout", type=float, default=300.0, help="s for the tests of one slip")
    parser.add_argument("--out", type=Path, default=None, help="a line of JSON for each slip")
    parser.add_argument("--seen", type=Path, default=None, help="keeps what each test runs for the next call")
    args = parser.parse_args()
    import cv2  # noqa: F401
    import PIL.Image  # noqa: F401
    import scipy.optimize  # noqa: F401
    import torch
    import torchvision  # noqa: F401

    torch.set_num_threads(1)
    folder = copied()
    areas = {a: s for a in AREAS if (s := chosen(a, args.seed, args.count, args.only, folder))}
    everything = [file for area in AREAS for file in files_of(area, folder)]
    counts: dict[str, Counter[str]] = {}
    for area, slips in areas.items():
        counts[area] = Counter()
        patterns = AREAS[area][1]
        tests = [str(p.relative_to(folder)) for pattern in patterns for p in sorted(folder.glob(pattern))]
        seen = seen_of(folder, tests, everything, args.timeout, args.seen)
        for test in (name for name, of in seen.items() if of["failed"]):
            print(f"fails without a slip, left out: {test}", flush=True)
        for slip in slips[: max(1, args.count // len(areas))]:
            source, told, lines = made(slip, folder)
            at = {f"{slip.file}:{line}" for line in lines}
            ask = [name for name, of in seen.items() if not of["failed"] and at.intersection(of["lines"])]
            ask.sort(key=lambda name: (tests.index(name.split("::")[0]), seen[name]["took"]))
            found = _tried(folder, slip.file, source, ask, args.timeout)
            counts[area][found] += 1
            print(f"{found:8} {told}", flush=True)
            if args.out:
                with args.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"area": area, "verdict": found, "slip": told, "tests": len(ask)}) + "\n")
    for area, number in counts.items():
        print(f"{area}: {number['killed'] + number['timeout']} of {number.total()} noticed")
    print(f"{sum(n['killed'] + n['timeout'] for n in counts.values())} of {sum(n.total() for n in counts.values())}")
    return 0


def _tried(folder: Path, file: str, source: str, tests: list[str], timeout: float) -> str:
    """What the ``tests`` say of a slip; "not run" where none of them comes by (one that starts a process may)."""
    if not tests:
        return "not run"
    kept = (folder / file).read_text(encoding="utf-8")
    (folder / file).write_text(source, encoding="utf-8")
    try:
        return tested(folder, tests, timeout)
    finally:
        (folder / file).write_text(kept, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
