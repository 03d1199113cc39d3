"""A lineage is run again: settings inherited, checkpoints passed on, schedules kept."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training.__main__ import main
from training.checkpoint import read_checkpoint
from training.config import ConfigError, load_config, to_dict
from training.tools.replay import DEFAULT, chosen, read_lineage


@pytest.fixture
def lineage(tmp_path: Path, base: Path) -> Path:
    path = tmp_path / "lineage.yaml"
    path.write_text(
        f"base: {base.as_posix()}\n"
        "phases:\n"
        "  - {name: one, set: {stage: stage1, steps: 8, optim: {lr: 2.0e-3}}}\n"
        "  - {name: two, from: {init: one}, stop: 3, set: {stage: stage2, steps: 9}}\n"
        "  - {name: more, like: one, from: {init: one}, set: {seed: 7, optim: {clip: 3.0}}}\n"
    )
    return path


def test_phases_inherit_settings_and_start_from_each_other(lineage: Path, tmp_path: Path) -> None:
    read = read_lineage(lineage)
    more = read.config(read.phases[2], tmp_path, ["batch=2"])
    assert (more.steps, more.seed, more.optim.lr, more.optim.clip, more.batch) == (8, 7, 2e-3, 3.0, 2)
    assert more.init == str(tmp_path / "one" / "last.ckpt") and more.out == str(tmp_path / "more")
    assert [p.name for p in chosen(read, ["more"])] == ["one", "more"]
    assert [p.name for p in chosen(read, [])] == ["one", "two", "more"]


def test_the_first_steps_of_each_phase_are_those_of_the_whole_run(lineage: Path, faces: Path, tmp_path: Path) -> None:
    """Four of eight steps on the schedule of eight; the second phase starts from them and ends where it is told to."""
    common = ["--lineage", str(lineage), f"data.roots=[{faces}]", "log_every=1"]
    assert main(["replay", "--out", str(tmp_path / "a"), "--steps", "4", *common]) == 0
    states = {name: read_checkpoint(tmp_path / "a" / name / "last.ckpt") for name in ("one", "two", "more")}
    assert {name: state["step"] for name, state in states.items()} == {"one": 4, "two": 3, "more": 4}
    assert states["one"]["config"]["steps"] == 8

    rates = [float(line.split(",")[-1]) for line in lines_of(tmp_path / "a" / "one" / "metrics.csv", "lr")]
    assert len(rates) == 4 and rates == sorted(rates, reverse=True) and rates[-1] > 1e-3

    assert main(["replay", "--out", str(tmp_path / "a"), "--phase", "one", *common]) == 0  # goes on to the end
    assert main(["replay", "--out", str(tmp_path / "b"), "--phase", "one", *common]) == 0
    resumed, whole = (read_checkpoint(tmp_path / side / "one" / "last.ckpt") for side in "ab")
    assert resumed["step"] == whole["step"] == 8
    for key, value in whole["model"].items():
        assert torch.equal(resumed["model"][key], value), key


def lines_of(table: Path, name: str) -> list[str]:
    return [line for line in table.read_text().splitlines() if line.split(",")[1] == name]


def test_list_prints_the_phases(lineage: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["replay", "--lineage", str(lineage), "--list"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "one: from scratch", "two: init from one; stops at 3", "more: init from one",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text, said",
    [
        ("base: b.yaml\n", "is no lineage"),
        ("base: b.yaml\nphases: [{name: a}, {name: a}]\n", "twice"),
        ("base: b.yaml\nphases: [{name: a, from: {init: z}}, {name: z}]\n", "not above it"),
        ("base: b.yaml\nphases: [{name: a, after: 3}]\n", "a phase has the keys"),
        ("a: [\n", "is not YAML"),
    ],
)
def test_a_lineage_that_cannot_be_run_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "l.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_lineage(tmp_path / "l.yaml")


def test_what_is_not_there_is_named(lineage: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["replay", "--lineage", str(tmp_path / "no.yaml")]) == 2
    assert main(["replay", "--lineage", str(lineage), "--phase", "three"]) == 2
    said = capsys.readouterr().err
    assert "There is no lineage" in said and "no phase 'three'; the lineage has one, two, more" in said


def test_the_lineage_of_the_built_in_pair_can_be_configured(tmp_path: Path) -> None:
    """Every phase of it, and the arms differ in the identity loss alone."""
    lineage = read_lineage(DEFAULT)
    configs = {phase.name: to_dict(lineage.config(phase, tmp_path)) for phase in lineage.phases}
    assert len(configs) == 29
    for name, config in configs.items():
        twin = {"control": "id"}.get(name, f"id_{name}")
        if twin in configs:
            other = configs[twin]
            different = {k for k in config if config[k] != other[k]} - {"out", "init"}
            assert different == {"stage", "loss"}, name
            assert all(k.startswith("identity") for k in config["loss"] if config["loss"][k] != other["loss"][k])


@pytest.mark.parametrize(("name", "stage"), [("stage1", ""), ("stage2", ""), ("stage3", ""), ("stage3_id", ""),
    ("recogniser", ""), ("fusion", "stage3"), ("fusion_id", "stage3_id"), ("fusion_end", "stage3"),
    ("fusion_end_id", "stage3_id")])  # fmt: skip
def test_the_configurations_of_the_built_in_networks_load(root: Path, name: str, stage: str) -> None:
    assert load_config(root / f"training/configs/mini/{name}.yaml").stage == (stage or name)


@pytest.mark.parametrize("name", ["fusion", "fusion_end"])
def test_the_last_phases_of_the_arms_differ_in_the_identity_loss_alone(root: Path, name: str) -> None:
    one, other = (to_dict(load_config(root / f"training/configs/mini/{each}.yaml")) for each in (name, f"{name}_id"))
    assert {key for key in one if one[key] != other[key]} == {"out", "stage", "loss"}
    assert all(key.startswith("identity") for key in one["loss"] if one["loss"][key] != other["loss"][key])
