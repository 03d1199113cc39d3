"""Signals at random moments of a training: whole checkpoints, and the run that goes on is the unbroken one."""
from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from cutting import ALL, KILL, Cutting

from training.checkpoint import read_checkpoint

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="POSIX signals"), pytest.mark.slow, pytest.mark.usefixtures("_answered")
]  # fmt: skip


def test_training(train, arguments, faces: Path, base: Path, tmp_path: Path) -> None:
    words = [*arguments["stage1"], "steps=60", "save_every=3", "log_every=1", "val_every=0", "sample_every=60"]
    assert train(tmp_path / "unbroken", *words) == 0
    last = tmp_path / "run/last.ckpt"
    line = ["-m", "training", "train", "--config", base, f"out={tmp_path / 'run'}", f"data.roots=[{faces}]", *words]

    table = tmp_path / "run/metrics.csv"

    def logged() -> int:
        return table.read_text().count(",l1,") if table.exists() else 0

    cutting = Cutting([*line, "--resume", "auto"], tmp_path, logged, most=0.2)
    steps = [0]
    for number in ALL:
        code, told = cutting.cut(number, 4)
        assert code == (-signal.SIGKILL if number == KILL else 130), told
        steps.append(read_checkpoint(last)["step"])
        assert steps[-2] < steps[-1] < 60
        assert number == KILL or "Interrupted" in told
    cutting.ends()
    made, wanted = read_checkpoint(last), read_checkpoint(tmp_path / "unbroken/last.ckpt")
    assert made["step"] == wanted["step"] == 60
    for name, value in wanted["model"].items():
        assert torch.equal(value, made["model"][name]), name
    rows = [line.split(",")[0] for line in (tmp_path / "run/metrics.csv").read_text().splitlines()]
    assert rows == [line.split(",")[0] for line in (tmp_path / "unbroken/metrics.csv").read_text().splitlines()]
