"""The loop around a step: what a run refuses, what it goes on from, which network is judged, what follows a jump."""
from __future__ import annotations

import math
import os
import shutil

import pytest
import torch
from lightning_fabric.plugins.precision.precision import Precision
from test_train_processes import finish, launch

from training.checkpoint import read_checkpoint
from training.config import load_config
from training.data.dataset import collate
from training.data.sampling import _noise_at_once, noise, uniform
from training.runlog import _forget_after
from training.trainer import Trainer
from training.weights import move

CODES = "quantize.embedding.weight"


@pytest.fixture
def trainer(base, faces, tmp_path):
    """Makes trainers of stage I."""
    made = []

    def make(*words, resume=None):
        config = load_config(base, [f"data.roots=[{faces}]", f"out={tmp_path / 'run'}", "stage=stage1", *words])
        made.append(Trainer(config, resume))
        return made[-1]

    yield make
    for one in made:
        one.log.close()


def batch_of(one: Trainer):
    return collate([one.data[i] for i in range(4)])


def test_a_used_folder_is_refused_unless_the_run_goes_on_or_is_replaced(runs, train, arguments, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(runs["stage2"], folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    elsewhere = ["--resume", str(runs["stage2"] / "last.ckpt")]
    for words in ([], elsewhere):
        assert train(folder, *arguments["stage2"], "steps=2", *words) == 2
        error = capsys.readouterr().err
        assert str(folder) in error and "--resume auto" in error and "--overwrite" in error
        assert before == {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    assert train(folder, *arguments["stage2"], "steps=2", "val_every=0", "--overwrite") == 0
    assert read_checkpoint(folder / "last.ckpt")["step"] == 2 and not (folder / "best.ckpt").exists()


def test_a_run_goes_on_after_its_files_moved_but_not_with_other_ones(
    runs, train, arguments, faces, tmp_path, capsys, monkeypatch
):
    shutil.copytree(faces, tmp_path / "moved")
    last = str(runs["stage2"] / "last.ckpt")
    (tmp_path / "first").mkdir()
    shutil.copy(runs["stage1"] / "last.ckpt", tmp_path / "first" / "renamed.ckpt")
    words = ["stage=stage2", f"init={tmp_path / 'first' / 'renamed.ckpt'}", "--resume", last, "steps=21"]
    moved = f"data.roots=[{tmp_path / 'moved'}]"
    assert train(tmp_path / "a", *words, moved) == 0
    assert "cosine" in (tmp_path / "a" / "log.txt").read_text()  # another length means other rates: it is said
    capsys.readouterr()
    image = next((tmp_path / "moved").rglob("*.png"))
    image.rename(image.with_name("other.png"))
    assert train(tmp_path / "b", *words, moved) == 2
    assert "data (other contents)" in capsys.readouterr().err
    state = read_checkpoint(tmp_path / "first" / "renamed.ckpt")
    state["step"] += 1
    torch.save(state, tmp_path / "first" / "renamed.ckpt")
    assert train(tmp_path / "c", *words) == 2
    assert "vqgan (other contents)" in capsys.readouterr().err


def test_a_checkpoint_without_digests_is_compared_by_names(runs, train, arguments, faces, tmp_path, capsys):
    state = read_checkpoint(runs["stage2"] / "last.ckpt")
    del state["sources"], state["score"]
    torch.save(state, tmp_path / "old.ckpt")
    shutil.copytree(faces, tmp_path / faces.name)
    words = [*arguments["stage2"], "--resume", str(tmp_path / "old.ckpt"), "steps=21"]
    assert train(tmp_path / "a", *words, f"data.roots=[{tmp_path / faces.name}]") == 0
    (tmp_path / faces.name).rename(tmp_path / "others")
    assert train(tmp_path / "b", *words, f"data.roots=[{tmp_path / 'others'}]") == 2
    assert "data.roots" in capsys.readouterr().err


@pytest.mark.parametrize("known", [True, False])
def test_the_best_score_counts_only_where_it_has_the_same_terms(trainer, tmp_path, known):
    first = trainer()
    first.best = 0.25
    first.save("last.ckpt", 3)
    path = tmp_path / "run" / "last.ckpt"
    state = read_checkpoint(path)
    if not known:
        del state["score"]
        torch.save(state, path)
    again = trainer(resume=path)
    assert again.start == 3 and again.best == (0.25 if known else math.inf)


def test_the_loss_scaler_is_restored(trainer, tmp_path, monkeypatch):
    first, given = trainer(), []
    monkeypatch.setattr(Precision, "state_dict", lambda self: {"scale": 7.0})
    monkeypatch.setattr(Precision, "load_state_dict", lambda self, state: given.append(state))
    first.save("last.ckpt", 3)
    trainer(resume=tmp_path / "run" / "last.ckpt")
    assert given == [{"scale": 7.0}]


def test_validation_judges_the_average_in_evaluation_mode(trainer, monkeypatch):
    one, seen = trainer("val_images=2"), []
    original = type(one.stage).validate

    def watched(self, batch):
        seen.append((self.net is one.ema.net, self.training, self.net.training, torch.is_grad_enabled()))
        return original(self, batch)

    monkeypatch.setattr(type(one.stage), "validate", watched)
    live = one.stage.net
    one.stage.train()
    one._validate(1)
    assert seen == [(True, False, False, False)]
    assert one.stage.net is live and one.stage.training and live.training and not one.ema.net.training


def test_the_best_checkpoint_is_that_of_the_lowest_score(trainer, tmp_path, monkeypatch):
    one, scores = trainer(), iter([3.0, 2.0, 2.5])
    monkeypatch.setattr("training.trainer.validate", lambda *_: {"val_score": next(scores)})
    for step in (1, 2, 3):
        one._validate(step)
    assert read_checkpoint(tmp_path / "run" / "best.ckpt")["step"] == 2 and one.best == 2.0


def test_average_and_moments_follow_codes_that_jump(trainer):
    one = trainer("codebook.kmeans_steps=0")
    batch = batch_of(one)
    for step in range(3):
        one.step(batch, step)
    codes, average = one.stage.net.get_parameter(CODES), one.ema.net.get_parameter(CODES)
    moments = one.optimiser.optimizer.state[codes]
    used = int(moments["exp_avg"].abs().sum(1).argmax())
    rows, before = torch.zeros(len(codes), dtype=torch.bool), average.clone()
    moments["exp_avg"][:] = moments["exp_avg_sq"][:] = 1.0
    rows[used] = True
    codes.data[used] += 5
    one.stage.jumped = {CODES: rows}
    one._follow_jumps()
    assert torch.equal(average[used], codes[used]) and torch.equal(average[~rows], before[~rows])
    for name in ("exp_avg", "exp_avg_sq"):
        assert float(moments[name][used].abs().sum()) == 0 and bool((moments[name][~rows] == 1).all())
    assert one.stage.jumped == {}


@pytest.mark.parametrize("step, name", [(2, "kmeans"), (4, "dead_codes")])
def test_a_stage_says_which_codes_it_moved(trainer, step, name):
    one = trainer("codebook.kmeans_steps=2", "codebook.reset_every=2", "codebook.reset_until=9")
    batch, stage = batch_of(one), one.stage
    stage.usage[5] = 3
    before = stage.net.get_parameter(CODES).clone()
    assert stage.before_step(batch, 1, one.fabric) == {} and stage.jumped == {}
    assert name in stage.before_step(batch, step, one.fabric)
    after = stage.net.get_parameter(CODES)
    assert torch.equal(stage.jumped[CODES], (after != before).any(1))
    assert bool(stage.jumped[CODES][5]) == (name == "kmeans") and int(stage.jumped[CODES].sum()) >= 31
    one._follow_jumps()
    logs = one.step(batch, step)
    drift = (one.ema.net.get_parameter(CODES) - after).detach().abs().max()
    assert name in logs and float(drift) < 5e-3  # not on the way between the old place and the new one


def test_positions_stay_on_the_host():
    """On a device each of them would be waited for in every draw; DDP moves tensors, but leaves lists."""
    batch = {"position": torch.tensor([3, 4]), "truth": torch.zeros(2), "name": ["a", "b"]}
    there = move(batch, torch.device("meta"))
    assert there["position"] == [3, 4] and there["truth"].device.type == "meta" and there["name"] == ["a", "b"]
    assert torch.equal(uniform([3, 4], 1, "jitter", 2), uniform(batch["position"], 1, "jitter", 2))
    assert torch.equal(noise([3, 4], 1, 0.5, (2,)), noise(batch["position"], 1, 0.5, (2,)))


def test_the_noise_of_a_batch_goes_by_its_first_position():
    """On a device it is drawn there, at once: the same when resumed, with each sample's own deviation."""

    def drawn(*positions: int, seed: int = 1) -> torch.Tensor:
        return _noise_at_once(positions, seed, 0.5, (64, 64), "cpu")

    assert torch.equal(drawn(3, 4, 5), drawn(3, 4, 5)) and drawn(3, 4).shape == (2, 64, 64)
    assert not torch.allclose(drawn(3, 4), drawn(4, 5)) and not torch.allclose(drawn(3, 4), drawn(3, 4, seed=2))
    spread = drawn(*range(200)).flatten(1).std(1)
    assert 0.22 < spread.mean() < 0.28 and spread.min() < 0.05 and 0.45 < spread.max() < 0.53


def test_a_crash_while_the_table_is_cut_keeps_it(tmp_path, monkeypatch):
    table = tmp_path / "metrics.csv"
    table.write_text("step,name,value\n5,l1,1\n10,l1,2\n")

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            _forget_after(table, 5)
    assert table.read_text() == "step,name,value\n5,l1,1\n10,l1,2\n"
    _forget_after(table, 5)
    assert table.read_text().split() == ["step,name,value", "5,l1,1"]


def test_batch_statistics_are_those_of_all_processes(train, arguments, base, faces, tmp_path):
    """The mean over the halves of a batch is that of the whole where the weights stay and no faces are blended."""
    words = [*arguments["distil"], "optim.lr=0", "optim.lr_min=0", "recogniser.mix=0", "steps=3", "val_every=0"]
    words += ["sample_every=0"]
    processes = launch(base, tmp_path / "two", [f"data.roots=[{faces}]", *words, "devices=2"])
    assert train(tmp_path / "one", *words) == 0
    finish(processes)
    states = [read_checkpoint(tmp_path / name / "last.ckpt") for name in ("one", "two")]
    first = next(k for k in states[0]["ema"] if k.endswith("running_mean"))
    for part, prefix in (("ema", ""), ("model", "net.")):
        one, two = (state[part][prefix + first] for state in states)
        assert float(one.abs().max()) > 1e-3 and torch.allclose(one, two, atol=1e-6)
