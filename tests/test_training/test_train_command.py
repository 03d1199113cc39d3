"""``python -m training``: commands, exit statuses, one sentence for what a user can mend."""
from __future__ import annotations

import sys

import pytest

import training.trainer
from training.__main__ import main


@pytest.mark.parametrize("words", [[], ["nonsense"], ["train", "stray"], ["train", "--unknown"], ["export"]])
def test_wrong_usage_exits_with_2(words, capsys):
    with pytest.raises(SystemExit) as left:
        if main(words) == 2:  # told in a sentence
            sys.exit(2)
    assert left.value.code == 2
    assert capsys.readouterr().err.count("Traceback") == 0


@pytest.mark.parametrize("command", ["train", "evaluate", "align", "export"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0 and command in capsys.readouterr().out


def test_overrides_may_stand_anywhere(monkeypatch, tmp_path):
    seen = []

    class Recorder:
        def __init__(self, config, resume):
            seen.append((config.steps, config.seed, config.optim.lr, resume))

        def run(self):
            return tmp_path

    monkeypatch.setattr(training.trainer, "Trainer", Recorder)
    (tmp_path / "c.yaml").write_text("stage: stage1")
    words = ["steps=7", "--config", str(tmp_path / "c.yaml"), "seed=3", "--resume", "x.ckpt", "optim.lr=1e-5"]
    assert main(["train", *words]) == 0
    assert seen == [(7, 3, 1e-5, "x.ckpt")]


@pytest.mark.parametrize(
    "error, status, said",
    [
        (PermissionError(13, "Permission denied", "/runs"), 2, "Permission denied: '/runs'"),
        (ModuleNotFoundError("No module", name="tensorboard.x"), 2, "pip install -r requirements.txt -r training"),
        (RuntimeError("CUDA out of memory. Tried"), 2, "lower batch"),
        (KeyboardInterrupt(), 130, "--resume auto"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(monkeypatch, tmp_path, capsys, error, status, said):
    def fail(*_):
        raise error

    monkeypatch.setattr(training.trainer, "Trainer", fail)
    assert main(["train", f"out={tmp_path}"]) == status
    assert said in (printed := capsys.readouterr().err) and printed.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ModuleNotFoundError("No module", name="nothing_of_ours")])
def test_bugs_keep_their_traceback(monkeypatch, tmp_path, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(training.trainer, "Trainer", fail)
    with pytest.raises(type(error)):
        main(["train", f"out={tmp_path}"])
