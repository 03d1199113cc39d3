"""Runs cases in a process of their own, so that a crash, a hang and a leak are seen for what they are.

``python -m tests.fuzz.harness --cases 10000`` runs them all and prints every fault with the line that repeats it.
"""
from __future__ import annotations

import argparse
import json
import os
import random
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from idcodeformer.files.reading import Picture

SECONDS = 10.0  # of a processor; a case must not take longer
ASLEEP = 120.0  # s by the clock, for one that waits without working
MEGABYTES = 1500  # a case must not need more beside what the process has; 178 Mpx claimed and cut off need 760
AREAS = ("images", "weights", "people", "configs", "reports", "lists")


def build_case(area: str, seed: int) -> tuple[str, bytes]:
    """(file name, content); the same for the same area and seed."""
    from . import images, lists, texts, weights

    makers = {"images": images.make, "weights": weights.make, "people": texts.make_people,
              "configs": texts.make_config, "reports": texts.make_report, "lists": lists.make_list}  # fmt: skip
    return makers[area](random.Random(f"{area} {seed}"))


def attempt(area: str, path: Path) -> str:
    """What a user's file of this kind goes through; "read", or the sentence it is refused with."""
    from idcodeformer.errors import IDCodeFormerError

    steps = {"images": _picture, "weights": _weights, "people": _people, "configs": _config, "reports": _report,
             "lists": _list}  # fmt: skip
    try:
        steps[area](path)
    except IDCodeFormerError as error:
        return str(error)
    return "read"


def _picture(path: Path) -> None:
    import torch

    from idcodeformer.files.reading import read

    picture = read(path)
    assert picture.frames.dtype == torch.float32 and picture.frames.shape[1] == 3 and min(picture.size) > 0
    assert 0 <= float(picture.frames.min()) and float(picture.frames.max()) <= 1
    if picture.frames.numel() < 2_000_000:
        _written(path.parent / "out", picture)


def _written(out: Path, picture: Picture) -> None:
    """What was read is written in every format that holds it, and read again."""
    from idcodeformer.errors import BadOption
    from idcodeformer.files.reading import read
    from idcodeformer.files.writing import write

    for ending in (".png", ".jpg", ".webp", ".gif"):
        try:
            file = write(out / f"result{ending}", picture)
        except BadOption:  # transparency as JPEG, a still picture as GIF
            assert ending != ".png"
            continue
        again = read(file)
        assert again.size == picture.size
        assert ending != ".png" or _distinct(picture) <= len(again.frames) <= len(picture.frames)
        assert ending != ".png" or float((again.frames[0] - picture.frames[0]).abs().max()) <= 1 / 255
        file.unlink()
    out.rmdir()


def _distinct(picture: Picture) -> int:
    """Frames that differ from the one before; encoders make one frame of equal neighbours."""
    import torch

    seen = picture.frames if picture.alpha is None else torch.cat([picture.frames, picture.alpha], dim=1)
    return 1 + sum(not torch.equal(*pair) for pair in zip(seen, seen[1:]))


def _weights(path: Path) -> None:
    from idcodeformer.weights.loading import build
    from idcodeformer.weights.reading import read_metadata

    if path.suffix == ".safetensors":
        read_metadata(path)
    build(path)


def _people(path: Path) -> None:
    from idcodeformer.identity.people import read_people

    for person in read_people(path).persons:
        assert person.photos and len(person.embeddings) == len(person.photos)


def _config(path: Path) -> None:
    from training.config import load_config

    load_config(path)


def _report(path: Path) -> None:
    from idcodeformer.files.run_report import read_report

    for entry in read_report(path):
        assert isinstance(entry["input"], str) and isinstance(entry["output"], str)


def _list(path: Path) -> None:
    from idcodeformer.batch import RestoreSettings
    from idcodeformer.bulk import BulkSettings, manifest
    from idcodeformer.bulk.listing import items
    from idcodeformer.bulk.places import Place

    place = Place(str(path.parents[1]))
    if path.name == "piece.parquet":
        assert all(isinstance(row["key"], str) for row in manifest.read_rows(place))
        manifest.done(place)
    elif path.name == "run.json":
        told = BulkSettings("", "", RestoreSettings()).told("")
        manifest.claim(place, told, "x", told)
    else:
        for item in items(str(path)):
            assert item.url and item.key and not item.key.startswith("/") and ".." not in item.key.split("/")


def _warm() -> None:
    """Imports and caches that the first cases must not pay for."""
    import onnx  # noqa: F401
    from PIL import Image

    import training.config  # noqa: F401

    Image.init()


def _work() -> None:
    """Read cases from standard input, answer on standard output; everything else goes to standard error."""
    import resource

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _warm()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        area, seed = json.loads(line)
        print(json.dumps(_one(area, seed)), file=answers, flush=True)


def _one(area: str, seed: int) -> dict:
    name, data = build_case(area, seed)
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        path = Path(folder, name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        before = _peak(reset=True)
        start = time.process_time()
        fault, told = "", ""
        try:
            told = attempt(area, path)
        except AssertionError as error:
            fault = f"wrong result: {error!r}"
        except BaseException as error:  # whatever else comes out is the fault that is looked for
            fault = f"{type(error).__name__}: {str(error)[:200]}"
        seconds, grown = time.process_time() - start, _peak() - before
        if told != "read" and not fault and not _is_sentence(told, name, area):
            fault = f"no sentence: {told[:300]!r}"
        if not fault and grown > MEGABYTES:
            fault = f"memory: {grown:.0f} MB"
        left = sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if not p.is_dir())
        if not fault and (left != [name] or path.read_bytes() != data):
            fault = f"files: {left}"
    return {"fault": fault, "told": told[:300], "seconds": seconds, "grown": grown}


def _is_sentence(told: str, name: str, area: str) -> bool:
    """One line a person can act on, which names the file (of a config, the key may do)."""
    return "\n" not in told and 20 < len(told) < 1500 and (name in told or area == "configs" and "key" in told.lower()
                                                           or area == "configs" and "There is no" in told)  # fmt: skip


def _peak(reset: bool = False) -> float:
    """Largest resident set in MB since the last reset; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    if reset:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return 0.0
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS" if reset else "VmHWM"))
    return int(line.split()[1]) / 1024


@dataclass
class Fault:
    """A case that broke a claim."""

    area: str
    seed: int
    what: str


class Runner:
    """One worker process, started again after a crash or a hang."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None
        self.read = self.refused = 0
        self.slowest = self.largest = 0.0

    def _start(self) -> None:
        root = Path(__file__).resolve().parents[2]
        line = [sys.executable, "-W", "ignore", "-m", "tests.fuzz.harness", "--worker"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(line, cwd=root, text=True, **pipes)
        assert self.process.stdout.readline() == "ready\n", "the worker did not start"

    def run(self, area: str, seed: int) -> Fault | None:
        """The fault of one case, None where it keeps every claim."""
        if self.process is None:
            self._start()
        self.process.stdin.write(json.dumps([area, seed]) + "\n")
        self.process.stdin.flush()
        if not self._answers():
            self.close()
            return Fault(area, seed, f"hangs for more than {SECONDS:g} s")
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.process = None
            return Fault(area, seed, f"the process died with {code}")
        answer = json.loads(line)
        self.slowest, self.largest = max(self.slowest, answer["seconds"]), max(self.largest, answer["grown"])
        self.read += answer["told"] == "read"
        self.refused += answer["told"] != "read"
        return Fault(area, seed, answer["fault"]) if answer["fault"] else None

    def _answers(self) -> bool:
        """Wait while the worker has not had its seconds: of a processor, so that a busy machine is no fault."""
        began, start = _processor_seconds(self.process.pid), time.monotonic()
        while not select.select([self.process.stdout], [], [], 1)[0]:
            asleep = time.monotonic() - start > ASLEEP
            if asleep or _processor_seconds(self.process.pid) - began > SECONDS:
                return False
        return True

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def _processor_seconds(pid: int) -> float:
    """User and system time of a process; 0 where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run_cases(areas: tuple[str, ...], first: int, count: int, runner: Runner) -> list[Fault]:
    """The faults of ``count`` cases, dealt to the areas in turn."""
    cases = ((areas[n % len(areas)], n) for n in range(first, first + count))
    return [fault for area, seed in cases if (fault := runner.run(area, seed)) is not None]


def main() -> int:
    parser = argparse.ArgumentParser(description="Try bad inputs; exit 1 where one breaks a claim.")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first case")
    parser.add_argument("--areas", nargs="+", choices=AREAS, default=["images", "weights", *AREAS])
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        _work()
        return 0
    runner, start = Runner(), time.perf_counter()
    try:
        faults = run_cases(tuple(args.areas), args.first, args.cases, runner)
    finally:
        runner.close()
    for fault in faults:
        print(f"{fault.what}  (--areas {fault.area} --first {fault.seed} --cases 1)")
    kinds = Counter(fault.area for fault in faults)
    print(f"{args.cases} cases in {time.perf_counter() - start:.0f} s: {runner.read} read, {runner.refused} refused, "
          f"{len(faults)} faults {dict(kinds) or ''}; slowest {runner.slowest:.1f} s, "
          f"most memory {runner.largest:.0f} MB")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
