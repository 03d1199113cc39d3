"""Do the tests notice? Seeded slips in a copy of the source, each against the tests that ought to fail.

    python tools/mutate.py [--seed 1] [--count 100] [--only compositing] [--timeout 300] [--out FILE]

A slip turns a comparison, a sign or a boolean round, changes a constant, or drops a statement. Heavy packages are
imported once, and each run is a fork with the copy as its folder; the working tree is never touched. POSIX only.
"""
from __future__ import annotations

import argparse
import ast
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NODES, TRAINING = "tests/test_nodes/test_node_", "tests/test_training/test_train_"
# File -> the tests that ought to notice, quick ones first.
TARGETS: dict[str, list[str]] = {
    "idcodeformer/detection/selection.py": ["tests/test_selection.py"],
    "idcodeformer/compositing/masks.py": ["tests/test_paste.py"],
    "idcodeformer/compositing/plan.py": ["tests/test_paste.py"],
    "idcodeformer/compositing/blend.py": ["tests/test_paste.py"],
    "idcodeformer/compositing/parsing.py": ["tests/test_parse.py"],
    "idcodeformer/detection/retinaface.py": ["tests/test_detect.py"],
    "idcodeformer/detection/landmarks.py": ["tests/test_detect.py"],
    "idcodeformer/guidance/gate.py": ["tests/test_guidance.py"],
    "idcodeformer/guidance/optimise.py": ["tests/test_guidance.py"],
    "idcodeformer/guidance/descent.py": ["tests/test_guidance.py"],
    "idcodeformer/guidance/judging.py": ["tests/test_guidance.py"],
    "idcodeformer/guidance/along.py": ["tests/test_video_people.py"],
    "idcodeformer/guidance/fidelity.py": ["tests/test_family.py", "tests/test_guidance.py"],
    "idcodeformer/guidance/restoring.py": ["tests/test_family.py", "tests/test_guidance.py"],
    "idcodeformer/identity/people.py": ["tests/test_people.py", "tests/test_family.py"],
    "idcodeformer/bulk/manifest.py": ["tests/test_bulk.py"],
    "idcodeformer/bulk/listing.py": ["tests/test_bulk.py"],
    "training/stages/losses.py": [f"{TRAINING}losses.py", f"{TRAINING}objective.py", f"{TRAINING}identity.py"],
    "training/stages/base.py": [f"{TRAINING}objective.py", f"{TRAINING}steps.py", f"{TRAINING}stages.py"],
    "training/stages/fidelity.py": [f"{TRAINING}objective.py", f"{TRAINING}identity.py", f"{TRAINING}stages.py"],
    "training/trainer.py": [f"{TRAINING}steps.py", f"{TRAINING}loop.py", f"{TRAINING}resume.py"],
    "nodes/convert.py": [f"{NODES}detect.py", f"{NODES}restore.py"],
    "nodes/detect.py": [f"{NODES}detect.py"],
    "nodes/compare.py": [f"{NODES}score.py"],
    "nodes/faces.py": [f"{NODES}restore.py", f"{NODES}detect.py"],
    "nodes/upscale.py": [f"{NODES}restore.py", f"{NODES}memory.py"],
    "nodes/stream.py": [f"{NODES}restore.py"],
    "nodes/restoring.py": [f"{NODES}restore.py", f"{NODES}guided.py", f"{NODES}person.py"],
    "nodes/people.py": [f"{NODES}person.py", f"{NODES}guided.py"],
    "nodes/managed.py": [f"{NODES}memory.py", f"{NODES}held.py", f"{NODES}restore.py"],
    "nodes/paste.py": [f"{NODES}paste.py"],
}
FLIPPED = {
    ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
SIGNS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}


@dataclass(frozen=True)
class Slip:
    """One changed node: which it is among the nodes of its file, and what happens to it."""

    file: str
    place: int
    kind: str


def slips_of(file: str, folder: Path = ROOT) -> list[Slip]:
    """Every slip that could be made in the functions of a file."""
    found = []
    for place, node in enumerate(_inside_functions(ast.parse((folder / file).read_text(encoding="utf-8")))):
        if isinstance(node, ast.Compare) and type(node.ops[0]) in FLIPPED:
            found.append(Slip(file, place, "comparison"))
        elif isinstance(node, ast.BinOp) and type(node.op) in SIGNS:
            found.append(Slip(file, place, "sign"))
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
            found.append(Slip(file, place, "unary"))
        elif isinstance(node, ast.BoolOp):
            found.append(Slip(file, place, "boolean"))
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
            found.append(Slip(file, place, "constant"))
        elif isinstance(node, (ast.Expr, ast.AugAssign)) and not isinstance(getattr(node, "value", None), ast.Constant):
            found.append(Slip(file, place, "dropped"))
    return found


def _inside_functions(tree: ast.Module) -> list[ast.AST]:
    """Nodes of function bodies; defaults and annotations are not behaviour that a call shows."""
    found: list[ast.AST] = []
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            found += [node for step in function.body for node in ast.walk(step) if not _nested(node)]
    return list(dict.fromkeys(found))


def _nested(node: ast.AST) -> bool:
    return isinstance(node, (ast.FunctionDef, ast.arguments, ast.Raise))


def made(slip: Slip, folder: Path = ROOT) -> tuple[str, str]:
    """The file's source with the slip, and a line that tells it."""
    tree = ast.parse((folder / slip.file).read_text(encoding="utf-8"))
    node = _inside_functions(tree)[slip.place]
    before = ast.unparse(node)
    if isinstance(node, ast.Compare):
        node.ops[0] = FLIPPED[type(node.ops[0])]()
    elif isinstance(node, ast.BinOp):
        node.op = SIGNS[type(node.op)]()
    elif isinstance(node, ast.BoolOp):
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, ast.Constant):
        node.value = (not node.value) if isinstance(node.value, bool) else node.value + 1
    elif isinstance(node, ast.UnaryOp):
        node.op = ast.UAdd() if isinstance(node.op, ast.USub) else ast.Not()
        if isinstance(node.op, ast.Not):
            node.operand = ast.UnaryOp(ast.Not(), node.operand)
    else:
        where = next(b for b in ast.walk(tree) for _, b in ast.iter_fields(b) if isinstance(b, list) and node in b)
        where[where.index(node)] = ast.copy_location(ast.Pass(), node)
        return ast.unparse(ast.fix_missing_locations(tree)), f"{slip.file}:{node.lineno} dropped: {before[:90]}"
    after = ast.unparse(node)
    told = f"{slip.file}:{node.lineno} {slip.kind}: {before[:60]} -> {after[:60]}"
    return ast.unparse(ast.fix_missing_locations(tree)), told


def copied() -> Path:
    """A copy of what is committed."""
    folder = Path(tempfile.mkdtemp(prefix="mutate_"))
    data = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def verdict(folder: Path, tests: list[str], timeout: float) -> str:
    """killed, survived or timeout, of the tests as they stand in ``folder``."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.chdir(folder)
        sys.path[0] = str(folder)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        import pytest

        code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-m", "not slow and not comfy and not gpu", *tests])
        os._exit(int(code))
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "survived" if status == 0 else "killed"
        time.sleep(0.2)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout"  # an endless loop is noticed too


def chosen(seed: int, count: int, only: str, folder: Path = ROOT) -> list[Slip]:
    """As many slips from each file, drawn with ``seed``."""
    files = [file for file in TARGETS if only in file]
    draws = random.Random(seed)
    pools = {file: draws.sample(pool := slips_of(file, folder), len(pool)) for file in files}
    picked: list[Slip] = []
    while len(picked) < count and any(pools.values()):
        for file in files:
            if pools[file] and len(picked) < count:
                picked.append(pools[file].pop())
    return sorted(picked, key=lambda slip: files.index(slip.file))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--only", default="", help="part of the names of files")
    parser.add_argument("--timeout", type=float, default=300.0, help="s for the tests of one slip")
    parser.add_argument("--out", type=Path, default=None, help="a line of JSON for each slip")
    args = parser.parse_args()
    import cv2  # noqa: F401
    import PIL.Image  # noqa: F401
    import scipy.optimize  # noqa: F401
    import torch
    import torchvision  # noqa: F401

    torch.set_num_threads(1)
    folder, counts = copied(), {"killed": 0, "survived": 0, "timeout": 0}
    for slip in chosen(args.seed, args.count, args.only, folder):
        source, told = made(slip, folder)
        kept = (folder / slip.file).read_text(encoding="utf-8")
        (folder / slip.file).write_text(source, encoding="utf-8")
        found = verdict(folder, TARGETS[slip.file], args.timeout)
        (folder / slip.file).write_text(kept, encoding="utf-8")
        counts[found] += 1
        print(f"{found:8} {told}", flush=True)
        if args.out:
            with args.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"verdict": found, "slip": told}) + "\n")
    print(f"{counts['killed'] + counts['timeout']} of {sum(counts.values())} noticed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
