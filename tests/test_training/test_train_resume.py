"""Interrupting, resuming, refusing, surviving: checkpoints."""
from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from training.checkpoint import read_checkpoint, write_checkpoint
from training.errors import ConfigError, NotFinite
from training.runlog import RunLog
from training.stages import VQGANStage
from training.trainer import Trainer


def equal(a, b, where: str = "") -> None:
    """Every tensor and every number of two nested states is the same to the bit."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b)):
            equal(*pair, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    else:
        assert a == b, where


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGINT) -> None:
    """A person presses Ctrl-C while that step is being logged: the next one is the last."""
    original = RunLog.step

    def logged(self, at, values, flush):
        original(self, at, values, flush)
        if at == step:
            signal.raise_signal(number)

    monkeypatch.setattr(RunLog, "step", logged)


@pytest.mark.parametrize("name, stop", [("stage1", 10), ("stage1", 14), ("stage3_id", 10), ("distil", 10)])
def test_interrupted_and_resumed_is_an_unbroken_run(runs, train, arguments, tmp_path, monkeypatch, name, stop):
    """20 steps = 10 + Ctrl-C + resume + 10: network, average, both optimisers, discriminator, code usage."""
    whole = read_checkpoint(runs[name] / "last.ckpt")
    with monkeypatch.context() as patch:
        interrupt_at(patch, stop - 2)
        assert train(tmp_path, *arguments[name]) == 130
    assert read_checkpoint(tmp_path / "last.ckpt")["step"] == stop
    assert train(tmp_path, *arguments[name], "--resume", "auto") == 0
    resumed = read_checkpoint(tmp_path / "last.ckpt")
    for state in (whole, resumed):
        del state["config"]["out"]
    assert whole["optimisers"][0]["state"] and bool(whole["discriminator"]) == (name != "distil")
    equal(whole, resumed)


def test_table_of_a_resumed_run_is_that_of_an_unbroken_one(runs, train, arguments, tmp_path):
    """Rows behind the checkpoint, and a row cut off by a crash, are written again and not twice."""
    shutil.copytree(runs["stage2"], tmp_path / "run")
    whole = (tmp_path / "run" / "metrics.csv").read_text()
    (tmp_path / "run" / "metrics.csv").write_text(whole + "20,tot")
    assert train(tmp_path / "run", *arguments["stage2"], "steps=30", "--resume", "auto") == 0
    assert (tmp_path / "run" / "metrics.csv").read_text().startswith(whole)
    again = train(tmp_path / "run", *arguments["stage2"], "steps=30", "--resume", "auto")
    assert again == 0 and "30 steps are done already" in (tmp_path / "run" / "log.txt").read_text()


def test_second_interrupt_does_not_wait(runs, train, arguments, tmp_path, monkeypatch):
    def logged(self, at, values, flush):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RunLog, "step", logged)
    assert train(tmp_path, *arguments["stage1"]) == 130
    assert not (tmp_path / "last.ckpt").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # handed back


@pytest.mark.parametrize("number", [signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)])
def test_a_scheduler_and_a_closed_terminal_save_too(runs, train, arguments, tmp_path, monkeypatch, number):
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_DFL)  # the tests may run under nohup
    interrupt_at(monkeypatch, 1, number)
    assert train(tmp_path, *arguments["stage1"]) == 130
    assert read_checkpoint(tmp_path / "last.ckpt")["step"] == 3


@pytest.mark.parametrize("change", ["optim.lr=2e-3", "net.nf=16", "seed=2", "data.hflip=false", "loss.l1=2", "batch=8"])
def test_checkpoint_of_another_configuration_is_refused(runs, train, arguments, tmp_path, capsys, change):
    words = ["--resume", str(runs["stage1"] / "last.ckpt")]
    assert train(tmp_path, *arguments["stage1"], change, *words) == 2
    error = capsys.readouterr().err
    assert "another configuration" in error and change.split("=")[0] in error and "init=" in error


def test_what_does_not_change_the_mathematics_may_differ(runs, train, arguments, tmp_path):
    words = ["steps=21", "log_every=1", "data.workers=1", "data.cache=true"]
    assert train(tmp_path, *arguments["stage2"], *words, "--resume", str(runs["stage2"] / "last.ckpt")) == 0
    assert read_checkpoint(tmp_path / "last.ckpt")["step"] == 21


def test_checkpoint_of_an_older_version_resumes(runs, train, arguments, tmp_path):
    """A key that the program did not have then counts as its default."""
    state = read_checkpoint(runs["stage2"] / "last.ckpt")
    del state["config"]["loss"]["perceptual_heads"], state["precision"]
    torch.save(state, tmp_path / "old.ckpt")
    words = ["--resume", str(tmp_path / "old.ckpt"), "steps=21"]
    assert train(tmp_path / "run", *arguments["stage2"], *words) == 0


@pytest.mark.parametrize("damage", ["absent", "truncated", "foreign", "text"])
def test_unreadable_checkpoint_is_one_sentence(runs, train, arguments, tmp_path, capsys, damage):
    path, good = tmp_path / "bad.ckpt", (runs["stage1"] / "last.ckpt").read_bytes()
    if damage == "truncated":
        path.write_bytes(good[: len(good) // 2])
    elif damage == "foreign":
        torch.save({"weight": torch.zeros(1)}, path)
    elif damage == "text":
        path.write_text("no checkpoint")
    assert train(tmp_path / "run", *arguments["stage1"], "--resume", str(path)) == 2
    error = capsys.readouterr().err
    assert str(path) in error and error.count("\n") == 1


def test_checkpoint_that_wants_to_run_code_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"format": 1, "step": Bomb()}, tmp_path / "bad.ckpt")
    with pytest.raises(ConfigError):
        read_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "executed").exists()


def _save_for_ever(path: Path) -> None:
    step = 0
    while True:
        write_checkpoint({"step": step, "model": {"w": torch.full((300_000,), float(step))}}, path)
        step += 1


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="kills forked processes")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_kill_9_while_saving_leaves_a_whole_checkpoint(tmp_path):
    path, cut_short = tmp_path / "last.ckpt", 0
    write_checkpoint({"step": -1, "model": {"w": torch.zeros(1)}}, path)
    for attempt in range(12):
        process = multiprocessing.get_context("fork").Process(target=_save_for_ever, args=(path,))
        before = path.stat().st_mtime_ns
        process.start()
        while path.stat().st_mtime_ns == before and process.is_alive():
            time.sleep(0.001)
        time.sleep(0.0007 * attempt)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        state = read_checkpoint(path)
        assert bool((state["model"]["w"] == state["step"]).all())
        cut_short += path.with_suffix(".ckpt.partial").exists()
    assert cut_short  # some of the kills did hit a half-written file


def test_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(
    runs, train, arguments, tmp_path, monkeypatch, capsys
):
    original = VQGANStage._reconstruction

    def broken(self, image, truth, step, out):
        return original(self, image, truth, step, out) * (float("nan") if step == 7 else 1)

    monkeypatch.setattr(VQGANStage, "_reconstruction", broken)
    assert train(tmp_path, *arguments["stage1"], "save_every=5") == 2
    error = capsys.readouterr().err.split("error: ")[1]
    assert "step 7" in error and str(tmp_path / "last.ckpt") in error and error.count(".png") == 4
    assert error.strip() in (tmp_path / "log.txt").read_text()
    state = read_checkpoint(tmp_path / "last.ckpt")
    assert state["step"] == 5 and all(v.isfinite().all() for v in state["model"].values())


def test_weights_that_are_not_finite_are_never_saved(base, faces, arguments, tmp_path):
    from training.config import load_config

    config = load_config(base, [f"data.roots=[{faces}]", f"out={tmp_path}", *arguments["stage1"]])
    trainer = Trainer(config)
    trainer.save("last.ckpt", 1)
    before = (tmp_path / "last.ckpt").read_bytes()
    trainer.stage.net.generator.blocks[0].bias.data[0] = float("inf")
    with pytest.raises(NotFinite, match=r"generator\.blocks\.0\.bias.*last good"):
        trainer.save("last.ckpt", 2)
    assert (tmp_path / "last.ckpt").read_bytes() == before
    trainer.stage.net.generator.blocks[0].bias.data[0] = 0.0
    bias = [p for p in trainer.stage.discriminator.parameters()][-1]
    bias.data[0] = float("nan")  # every run that went on from there would stop at its first step
    with pytest.raises(NotFinite, match=r"discriminator\..*last good"):
        trainer.save("last.ckpt", 2)
    assert (tmp_path / "last.ckpt").read_bytes() == before
    trainer.log.close()
