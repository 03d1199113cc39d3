"""Many photos in a folder: do the networks wait for files, does memory grow?  python -m benchmarks.folder [--count 500]

Photos of 2 megapixels with one face, links to a few different files, restored by the built-in networks: once as the
command line does it, read ahead and written behind, and (--plain) once one after another.
"""
from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

from idcodeformer.batch import Outcome, RestoreJob, RestoreSettings
from idcodeformer.files.reading import Picture
from idcodeformer.files.writing import write
from idcodeformer.runtime.allocator import keep_pages
from idcodeformer.types import RestoreOptions

from .common import arguments, finish, set_threads, table
from .scenes import portrait

_DIFFERENT = 5


def photos(folder: Path, count: int) -> list[tuple[Path, Path]]:
    """(file, target) of ``count`` JPEGs of 1152 x 1728."""
    folder.mkdir()
    made = [folder / f"photo{n}.jpg" for n in range(_DIFFERENT)]
    for number, file in enumerate(made):
        write(file, Picture(portrait(1728, 1152, 240 + 20 * number)[None]))
    pairs = []
    for number in range(count):
        link = folder / f"{number:04d}.jpg"
        link.hardlink_to(made[number % _DIFFERENT])
        pairs.append((link, Path(link.stem)))
    return pairs


def resident() -> float:
    """MB now; the peak where the system tells no more."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


class Clock:
    """A job whose time in the networks' stage is added up, and the memory after every picture."""

    def __init__(self, job: RestoreJob):
        self.seconds, self.memory, self._work, job.work = 0.0, [], job.work, self._timed

    def _timed(self, *args) -> None:
        start = time.perf_counter()
        self._work(*args)
        self.seconds += time.perf_counter() - start

    def done(self, outcome: Outcome) -> None:
        if outcome.status != "restored":
            raise SystemExit(f"{outcome.input}: {outcome.error or outcome.faces}")
        self.memory.append(resident())


def measure(pairs: list[tuple[Path, Path]], out: Path, overlapped: bool) -> dict[str, float]:
    job = RestoreJob(RestoreSettings(RestoreOptions(large_faces="restore"), out=out)).load()
    clock, start, cpu = Clock(job), time.perf_counter(), time.process_time()
    if overlapped:
        job.attempt_all(pairs, clock.done)
    else:
        for pair in pairs:
            clock.done(job.attempt(*pair))
    wall = time.perf_counter() - start
    tenth = max(1, len(pairs) // 10)
    return {
        "wall": wall / len(pairs), "cpu": (time.process_time() - cpu) / len(pairs), "share": clock.seconds / wall,
        "early_mb": max(clock.memory[: 2 * tenth]), "late_mb": max(clock.memory[-tenth:]),
    }  # fmt: skip


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--count", type=int, default=100, help="photos")
    parser.add_argument("--plain", action="store_true", help="also one after another")
    options = parser.parse_args()
    set_threads(options.threads)
    keep_pages()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        pairs = photos(Path(folder, "in"), options.count)
        if options.plain:
            rows["one after another"] = measure(pairs, Path(folder, "plain"), False)
        rows["overlapped"] = measure(pairs, Path(folder, "out"), True)
    header = ["way", "s a photo", "CPU s a photo", "time in the networks", "MB in the first fifth", "MB at the end"]
    lines = [[name, *(row[key] for key in ("wall", "cpu", "share")), round(row["early_mb"]), round(row["late_mb"])]
             for name, row in rows.items()]  # fmt: skip
    table(f"{options.count} photos of 2 megapixels, one face each", header, lines)
    finish("folder", rows, options.json)


if __name__ == "__main__":
    main()
