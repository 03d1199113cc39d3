"""The 512-px configurations hold what docs/training.md says, and the cost table there is what the count gives."""
from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.training_cost import count
from idcodeformer.networks.codeformer import CodeFormerConfig
from idcodeformer.weights.registry import by_name
from training.checkpoint import differences
from training.config import load_config, to_dict
from training.stages import codeformer_config

STAGES = ("stage1", "stage2", "stage3", "stage3_id")


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_is_the_published_network_in_published_batches(root: Path, stage: str) -> None:
    config = load_config(root / f"training/configs/full/{stage}.yaml")
    assert config.stage == stage and codeformer_config(config) == CodeFormerConfig()
    published = {"stage1": (32, 1_600_000), "stage2": (32, 500_000)}.get(stage, (24, 150_000))
    assert (config.batch, config.steps) == published and config.devices == 8
    assert config.data.size == 512 and config.val.roots != config.data.roots
    assert config.val_degradation in config.degradations


def test_the_traps_are_put_right(root: Path) -> None:
    one, two, three = (load_config(root / f"training/configs/full/{s}.yaml") for s in STAGES[:3])
    assert one.loss.commitment == 0.25 and one.loss.codebook == 1.0
    assert two.init and three.vqgan  # target codes come from trained weights
    assert three.fidelity.code_selection == "straight_through" and not three.fidelity.detach_features
    assert three.degradation.sigma == [0.1, 15.0] and two.degradation.sigma == [1.0, 15.0]


def test_the_identity_arm_differs_from_the_control_in_nothing_else(root: Path) -> None:
    control, identity = (to_dict(load_config(root / f"training/configs/full/{s}.yaml")) for s in STAGES[2:])
    changed = {d.split(" ")[0] for d in differences(control, identity)}
    assert changed == {"stage", "loss.identity", "loss.identity_start", "loss.identity_weights", "loss.identity_jitter"}
    assert control["loss"]["identity"] == 0
    for name in identity["loss"]["identity_weights"]:
        assert by_name(name).kind == "recogniser"


@pytest.mark.parametrize("stage", STAGES)
def test_the_cost_table_is_the_count(root: Path, stage: str) -> None:
    config = load_config(root / f"training/configs/full/{stage}.yaml")
    cost = count(config)
    label = {"stage1": "I", "stage2": "II", "stage3": "III", "stage3_id": "III + identity (R50)"}[stage]
    line = next(x for x in (root / "docs/training.md").read_text().splitlines() if x.startswith(f"| {label} |"))
    cells = [c.strip() for c in line.strip("|").split("|")]
    assert cells[2] == f"{cost.flops / 1e12:.2f}"
    assert cells[3] == f"{cost.activations / 2**30:.2f} GiB"
    trained, frozen = (sum(p.numel() for p in group) / 1e6 for group in (cost.trained, cost.frozen))
    assert cells[1] == f"{trained:.1f} M / {frozen:.1f} M"
    total = config.steps * config.batch * cost.flops
    assert float(re.sub(r"[^0-9.e]", "", cells[6])) == pytest.approx(total, rel=0.01)


def test_finetuning_starts_from_the_published_weights_and_fits_24_gb(root: Path) -> None:
    config = load_config(root / "training/configs/full/finetune_id.yaml")
    assert codeformer_config(config) == CodeFormerConfig() and config.stage == "stage3_id" and config.devices == 1
    assert (by_name(config.init).kind, by_name(config.vqgan).kind) == ("codeformer", "vqgan")
    assert config.loss.identity > 0 and config.loss.identity_start < config.steps // 10
    part = config.batch // config.accumulate
    cost = count(config)
    bytes_ = part * cost.activations * 0.8 + 20 * sum(p.numel() for p in cost.trained) + (2 << 30)
    assert bytes_ < 22 * 2**30
    said = (root / "docs/training.md").read_text()
    assert f"{part} x {cost.activations / 2**30:.1f} GiB" in said and f"{config.steps:,} steps" in said
    assert f"{config.steps * config.batch:,} images x {cost.flops / 1e12:.2f} TFLOP" in said
