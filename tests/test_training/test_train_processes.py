"""Two processes on the CPU (gloo) with half the batch each follow the curve of one process with the whole batch.

Every draw belongs to a sample, the code usage and the adaptive GAN weight are those of the whole batch, DDP averages
gradients: the two differ by the order of floating-point sums alone. Tolerances: 0.1 % for each figure of each step
(six digits agree as a rule), and for the averaged weights 2 % of the way that training moved them, since Adam turns
a gradient near 0 into a full step of either sign.
"""
from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from test_train_stages import figures

from training.checkpoint import read_checkpoint

ROOT = Path(__file__).parents[2]


def launch(base: Path, out: Path, words: list[str], count: int = 1, **variables: str) -> list[subprocess.Popen]:
    """The command as a user types it, ``count`` times with NODE_RANK 0, 1, ..."""
    command = [sys.executable, "-m", "training", "train", "--config", str(base), f"out={out}", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return [
        subprocess.Popen(
            command, cwd=ROOT, env={**environment, "NODE_RANK": str(rank)} if count > 1 else environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(count)
    ]  # fmt: skip


def finish(processes: list[subprocess.Popen]) -> None:
    try:
        for process in processes:
            said, _ = process.communicate(timeout=300)
            assert process.returncode == 0, said
    finally:
        for process in processes:
            process.kill()


def compare(one: Path, two: Path, start: dict[str, torch.Tensor]) -> None:
    mine, theirs = figures(one), figures(two)
    assert mine.keys() == theirs.keys()
    for name, curve in mine.items():
        assert curve.keys() == theirs[name].keys()
        for step, value in curve.items():
            # a ratio of two gradients' norms: it carries the rounding of all steps before, twice
            rel = 5e-3 if name == "gan_weight" else 1e-3
            assert theirs[name][step] == pytest.approx(value, rel=rel, abs=1e-6), (name, step)
    a, b = (read_checkpoint(folder / "last.ckpt") for folder in (one, two))
    moved = apart = 0.0
    for key, value in a["ema"].items():
        moved += float((value - start[key]).square().sum())
        apart += float((value - b["ema"][key]).square().sum())
    assert moved > 0 and apart**0.5 < 0.02 * moved**0.5
    if "usage" in a["model"]:
        assert torch.equal(a["model"]["usage"], b["model"]["usage"])  # counted over all processes, saved by one


def test_two_processes_follow_the_curve_of_one(runs, train, arguments, base, faces, tmp_path):
    """Stage I with k-means, reset of dead codes and perceptual loss."""
    words = [*arguments["stage1"], "loss.gan=0", "steps=10"]
    common = [f"data.roots=[{faces}]", *words, "log_every=1"]
    processes = launch(base, tmp_path / "two", [*common, "devices=2"])
    assert train(tmp_path / "one", *words, "log_every=1") == 0
    assert train(tmp_path / "start", *words, "optim.lr=0", "codebook.kmeans_steps=0", "steps=1") == 0
    finish(processes)
    compare(tmp_path / "one", tmp_path / "two", read_checkpoint(tmp_path / "start" / "last.ckpt")["ema"])


def test_two_nodes_follow_the_curve_of_one(runs, train, arguments, base, faces, tmp_path):
    """The identity arm with drawn w, jitter and GAN, one process on each of two nodes; an image is unreadable."""
    runs["stage2"]
    (tmp_path / "faces").mkdir()
    for i, path in enumerate(sorted(faces.rglob("*.png"))):
        (tmp_path / "faces" / f"{i}.png").write_bytes(path.read_bytes())
    (tmp_path / "faces" / "broken.png").write_bytes(b"no image")
    words = [f"data.roots=[{tmp_path / 'faces'}]", *arguments["stage3_id"], "steps=10", "log_every=1"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = launch(
        base, tmp_path / "two", [*words, "nodes=2"], 2, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    assert train(tmp_path / "one", *words) == 0
    finish(processes)
    compare(tmp_path / "one", tmp_path / "two", read_checkpoint(runs["stage2"] / "last.ckpt")["ema"])
    for out in ("one", "two"):
        assert (tmp_path / out / "log.txt").read_text().count("broken.png: not readable") == 1


@pytest.mark.parametrize("word, status", [("steps=2", 0), ("optim.lr=1e30", 2)])
def test_process_group_is_left_before_the_interpreter_ends(train, arguments, tmp_path, word, status):
    """Processes that ended within a group of gloo were aborted now and then (SIGABRT after 'Done')."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert train(tmp_path, *arguments["stage1"], "loss.gan=0", word) == status
        assert not dist.is_initialized()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
