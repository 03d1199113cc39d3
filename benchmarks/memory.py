"""Peak memory, each case in a process of its own: python -m benchmarks.memory

Cases: 8 and 40 faces in one 1080p picture, and one face in a picture of 7680 x 4320, in memory and in place: all runs
(detection on the large picture, restoring, pasting) with a 512-px network. With --files also from file to file, by the
built-in networks: a PNG of 7680 x 4320 and a 16-bit TIFF of 12000 x 8400. Peaks are resident set sizes, of the process
and above what it held before the call.
"""
from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from idcodeformer import FacePipeline, RestoreOptions, load_detector
from idcodeformer.batch import RestoreJob, RestoreSettings
from idcodeformer.files.pixels import to_levels
from idcodeformer.networks.codeformer import CodeFormerConfig
from idcodeformer.restoration.codeformer import CodeFormerRestorer

from .common import arguments, finish, set_threads, table
from .scenes import crowd, grid_of_faces, portrait
from .weights import load

CASES = {"8 faces, 1080p": 8, "40 faces, 1080p": 40, "1 face, 8K": 1}
FILES = {
    "8K PNG, file to file": (4320, 7680, "picture.png"),
    "100 MP 16-bit TIFF, file to file": (8400, 12000, "scan.tif"),
}


def peak() -> float:
    """Largest resident set so far, MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def probe(case: str, narrow: bool, weights: Path | None) -> dict[str, object]:
    """Run one case here and say what it took."""
    config = CodeFormerConfig(nf=16) if narrow else CodeFormerConfig()
    restorer = CodeFormerRestorer(load(weights, config), "cpu", "fp32")
    if case == "1 face, 8K":
        image, faces = portrait(4320, 7680, 900), None
    else:
        image = crowd()
        faces = [grid_of_faces(CASES[case], *image.shape[1:])]
    pipeline = FacePipeline(restorer, load_detector(device="cpu") if faces is None else None)
    before = peak()
    result = pipeline([image], RestoreOptions(large_faces="restore"), faces=faces, in_place=True)
    return {"case": case, "faces": len(result.crops_out), "peak_mb": peak(), "call_mb": peak() - before}


def make(case: str, folder: Path) -> Path:
    """The file of a case; one face of about an eighth of the height."""
    import cv2

    height, width, name = FILES[case]
    levels = to_levels(portrait(height, width, height // 5), 65535 if name.endswith(".tif") else 255)
    cv2.imwrite(str(folder / name), levels[:, :, ::-1])
    return folder / name


def probe_file(case: str, file: Path) -> dict[str, object]:
    """Restore one file here as the command line does, and say what it took."""
    job = RestoreJob(RestoreSettings(RestoreOptions(large_faces="restore"), out=file.parent)).load()
    before = peak()
    outcome = job.attempt(file, Path("restored"))
    if outcome.error:
        raise SystemExit(outcome.error)
    return {"case": case, "faces": outcome.restored, "peak_mb": peak(), "call_mb": peak() - before}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--weights", type=Path, help="weight file; default: seeded random weights")
    parser.add_argument("--narrow", action="store_true", help="a quarter of the width: the networks cost little")
    parser.add_argument("--files", action="store_true", help="also from file to file; takes some GB of disk")
    parser.add_argument("--case", choices=[*CASES, *FILES], help="run this case alone, in this process")
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    set_threads(options.threads)
    if options.case:
        alone = options.case in FILES
        print(json.dumps(probe_file(options.case, options.file) if alone
                         else probe(options.case, options.narrow, options.weights)))  # fmt: skip
        return
    rows = [_elsewhere(case, options) for case in CASES]
    for case in FILES if options.files else ():
        with tempfile.TemporaryDirectory() as folder:
            rows.append(_elsewhere(case, options, make(case, Path(folder))))
    ratio = rows[1]["peak_mb"] / rows[0]["peak_mb"]
    lines = [[row["case"], row["faces"], round(row["peak_mb"]), round(row["call_mb"])] for row in rows]
    table("Peak resident memory, MB", ["case", "faces restored", "process", "above start"], lines)
    print(f"\n40 faces need {ratio:.2f} times the memory of 8.")
    finish("memory", {"cases": rows, "ratio_40_to_8": ratio}, options.json)


def _elsewhere(case: str, options: argparse.Namespace, file: Path | None = None) -> dict:
    command = [sys.executable, "-m", "benchmarks.memory", "--case", case, "--threads", str(options.threads)]
    command += ["--narrow"] * options.narrow + (["--weights", str(options.weights)] if options.weights else [])
    command += ["--file", str(file)] if file else []
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
