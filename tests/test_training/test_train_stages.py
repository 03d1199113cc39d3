"""Twenty steps of every stage on synthetic faces: what a run leaves behind, what moved and what stayed."""
from __future__ import annotations

import csv
import math

import pytest
import torch
from PIL import Image

from training.checkpoint import read_checkpoint
from training.config import ConfigError, load_config
from training.data.dataset import PairDataset, collate
from training.stages import FROZEN, build_stage, recogniser

LOSSES = {
    "distil": {"distil", "relation"},
    "arcface": {"accuracy"},
    "stage1": {"l1", "perceptual", "codebook", "commitment", "perplexity", "gan", "d", "kmeans", "dead_codes"},
    "stage2": {"code", "feature", "code_accuracy"},
    "stage3": {"code", "feature", "l1"},
    "control": {"code", "feature", "l1", "gan", "gan_weight", "d"},
    "stage3_id": {"code", "feature", "l1", "gan", "gan_weight", "d", "identity"},
}


def figures(folder) -> dict[str, dict[int, float]]:
    """name -> step -> value of a run's table."""
    out: dict[str, dict[int, float]] = {}
    with open(folder / "metrics.csv", newline="") as file:
        for row in csv.DictReader(file):
            out.setdefault(row["name"], {})[int(row["step"])] = float(row["value"])
    return out


@pytest.mark.parametrize("name", LOSSES)
def test_run_folder(runs, name):
    folder = runs[name]
    table = figures(folder)
    assert LOSSES[name] <= table.keys()
    assert list(table["total"]) == [5, 10, 15, 20]
    assert list(table["val_score"]) == [10, 20]
    assert all(torch.tensor(list(v.values())).isfinite().all() for v in table.values())
    assert load_config(folder / "config.yaml").out == str(folder)
    assert "step 20" in (folder / "log.txt").read_text()
    assert list((folder / "events").glob("events.out.tfevents.*"))
    last, best = read_checkpoint(folder / "last.ckpt"), read_checkpoint(folder / "best.ckpt")
    assert last["step"] == 20 and best["step"] in (10, 20)
    assert last["best"] == pytest.approx(min(table["val_score"].values()), rel=1e-4)
    columns = {"stage1": 2}.get(name, 3)  # the first stage has no degraded input to show
    if LOSSES[name] & {"l1", "code"}:
        for step in (10, 20):
            assert Image.open(folder / "samples" / f"{step:07d}.png").size == (64 * columns, 64 * 4)


@pytest.mark.parametrize("name", LOSSES)
def test_it_learns(runs, name):
    total = figures(runs[name])
    key = "l1" if "l1" in total else "total"  # the total of runs with a GAN jumps where the discriminator starts
    assert total[key][20] < total[key][5]


@pytest.mark.parametrize("name", ["distil", "stage2", "stage3_id"])
def test_frozen_parts_did_not_move(runs, arguments, base, faces, name):
    config = load_config(base, [f"data.roots=[{faces}]", *arguments[name]])
    runs[name]
    torch.manual_seed(config.seed)
    fresh = build_stage(config)
    after = read_checkpoint(runs[name] / "last.ckpt")["model"]
    trained = {n.split(".")[0] for n, p in fresh.net.named_parameters() if p.requires_grad}
    frozen = {n.split(".")[0] for n, _ in fresh.net.named_parameters()} - trained
    assert frozen == {"distil": set(), "stage2": {"quantize", "generator", "fuse_convs_dict"}}.get(
        name, {"quantize", "generator"}
    )
    moved = {k.split(".")[1] for k, v in fresh.state_dict().items() if k in after and not torch.equal(v, after[k])}
    assert moved == trained
    assert not {k.split(".")[0] for k in after} & set(FROZEN)  # they come from their own files


def test_fusion_at_a_further_side_starts_without_effect(runs, arguments, base, faces, tmp_path):
    given = [f"data.roots=[{faces}]", *arguments["stage3"], f"init={runs['stage3'] / 'last.ckpt'}"]
    narrow = build_stage(load_config(base, given)).net.eval()
    wide = build_stage(load_config(base, [*given, "net.connect_list=[16,32,64]"])).net.eval()
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1
    with torch.no_grad():
        assert torch.equal(narrow(pixels, 1.0)[0], wide(pixels, 1.0)[0])
        assert not torch.equal(narrow(pixels, 1.0)[0], narrow(pixels, 0.0)[0])
    wide(pixels, 1.0)[0].square().mean().backward()  # and it learns
    assert float(wide.fuse_convs_dict["64"].shift[-1].weight.grad.abs().sum()) > 0
    bare = {k: v for k, v in narrow.state_dict().items() if not k.startswith("fuse_convs_dict")}
    torch.save({"params_ema": bare}, tmp_path / "bare.pth")
    fresh = build_stage(load_config(base, [*given[:-1], f"init={tmp_path / 'bare.pth'}"])).net
    assert all(bool(block.shift[-1].weight.any()) for block in fresh.fuse_convs_dict.values())


@pytest.mark.parametrize("name", ["distil", "stage1", "stage2", "stage3_id"])
def test_frozen_networks_stay_frozen_in_training_mode(runs, arguments, base, faces, name):
    config = load_config(base, [f"data.roots=[{faces}]", *arguments[name], "loss.gan=0"])
    runs[name]
    stage = build_stage(config, 4).train()
    networks = [getattr(stage, n) for n in FROZEN if getattr(stage, n, None) is not None]
    assert networks
    before = [{k: v.clone() for k, v in n.state_dict().items()} for n in networks]
    data = PairDataset(config.data, config.degradation, 0)
    stage(collate([data[i] for i in range(2)]), 10)["total"].backward()
    for network, state in zip(networks, before):
        assert not any(m.training for m in network.modules())
        assert all(p.grad is None and not p.requires_grad for p in network.parameters())
        assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
    trained = [p for p in stage.trainable() if p.grad is not None and p.grad.abs().sum() > 0]
    assert len(trained) > 0.9 * len(stage.trainable())


def test_control_arm_is_the_same_run_without_the_identity_loss(runs, arguments, base, faces):
    """Same data, same w, same start: only the term differs."""
    runs["stage2"]
    stages = []
    for name in ("control", "stage3_id"):
        config = load_config(base, [f"data.roots=[{faces}]", *arguments[name]])
        torch.manual_seed(config.seed)
        stages.append(build_stage(config))
    control, identity = stages
    assert control.identity is None and identity.identity is not None
    for (k, a), (_, b) in zip(control.net.state_dict().items(), identity.net.state_dict().items()):
        assert torch.equal(a, b), k
    positions = torch.arange(64)
    w = control._draw_w(positions)
    assert torch.equal(w, identity._draw_w(positions))
    assert 0.3 < (w == 1).float().mean() < 0.7 and w.min() < 0.4


@pytest.mark.parametrize("low", ["0", "1"])
def test_w_of_zero_with_a_discriminator_does_not_crash(runs, train, arguments, tmp_path, low):
    runs["stage2"]
    words = ["fidelity.full=0", f"fidelity.low={low}", f"fidelity.high={low}", "loss.gan_start=0", "steps=2"]
    assert train(tmp_path, *arguments["control"], *words, "log_every=1") == 0
    weight = figures(tmp_path)["gan_weight"]
    assert (weight[2] == 0) == (low == "0")


@pytest.mark.parametrize(
    "words, key",
    [
        (["stage=stage2"], "init"),
        (["stage=stage3", "init={second}"], "vqgan"),
        (["stage=stage2", "init={second}"], "vqgan"),
        (["stage=stage3", "init={second}", "vqgan={second}"], "vqgan"),
        (["stage=stage3", "init={second}", "vqgan={other}"], "vqgan"),
        (["stage=stage1", "loss.perceptual=1"], "loss.perceptual_weights"),
        (["stage=stage3_id", "init={second}", "vqgan={first}", "loss.identity=1"], "loss.identity_weights"),
        (["stage=stage3", "init={second}", "vqgan={first}", "loss.anchor=1"], "loss.anchor_weights"),
        (
            ["stage=stage3", "init={second}", "vqgan={first}", "loss.anchor=1", "loss.anchor_weights={first}"],
            "position_emb",
        ),
        (["stage=recogniser"], "recogniser.teacher"),
        (["stage=stage2", "init={first}", "net.nf=16"], "net."),
        (["stage=stage1", "accelerator=tpu"], "accelerator"),
    ],
)
def test_refused_starts_name_the_key(runs, train, tmp_path, capsys, words, key):
    """Above all: target codes never come from a network without weights (CodeFormer issue 304)."""
    first = read_checkpoint(runs["stage1"] / "last.ckpt")
    first["ema"]["quantize.embedding.weight"] = torch.randn(32, 16)
    torch.save(first, tmp_path / "other.ckpt")
    names = {
        "first": runs["stage1"] / "last.ckpt", "second": runs["stage2"] / "last.ckpt", "other": tmp_path / "other.ckpt",
    }  # fmt: skip
    capsys.readouterr()  # the shared runs, where they were made just now
    assert train(tmp_path / "run", *[w.format(**names) for w in words]) == 2
    error = capsys.readouterr().err
    assert key in error and error.startswith("error: ") and "Traceback" not in error


def test_published_timetable_has_image_losses_in_some_steps_only(runs, train, arguments, tmp_path):
    runs["stage2"]
    words = ["fidelity.code_only_every=3", "fidelity.code_only_from=2", "loss.gan_start=0", "steps=7", "log_every=1"]
    assert train(tmp_path, *arguments["control"], *words) == 0
    table = figures(tmp_path)
    assert list(table["code"]) == [1, 2, 3, 4, 5, 6, 7]
    assert list(table["l1"]) == list(table["d"]) == [1, 2, 4, 7]  # steps 0, 1, 3, 6


def test_without_terms_of_the_codes_nobody_looks_for_them(runs, arguments, base, faces, train, tmp_path):
    runs["stage2"]
    words = ["loss.code=0", "loss.feature=0", "loss.gan=0", "fidelity.code_selection=hard", "steps=2", "log_every=1"]
    stage = build_stage(load_config(base, [f"data.roots=[{faces}]", *arguments["control"], *words]))
    stage.target = None
    batch = {name: torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8) for name in ("truth", "degraded")}
    out = stage({**batch, "position": [0, 1]}, 0)
    assert not {"code", "feature"} & out.keys() and out["total"].item() > 0
    out["total"].backward()
    assert train(tmp_path, *arguments["control"], *words) == 0
    for stage, more in (("stage2", []), ("stage3", ["fidelity.code_only_every=3"])):
        with pytest.raises(ConfigError, match="loss.code"):
            load_config(base, [f"stage={stage}", f"data.roots=[{faces}]", *words, *more])


def test_generator_trains_only_where_asked(runs, arguments, base, faces):
    runs["stage2"]
    for asked in (False, True):
        words = [f"data.roots=[{faces}]", *arguments["control"], f"fidelity.train_generator={asked}"]
        stage = build_stage(load_config(base, words))
        assert all(p.requires_grad == asked for p in stage.net.generator.parameters())
        assert not any(p.requires_grad for p in stage.net.quantize.parameters())


def test_parts_may_be_frozen_by_name(runs, arguments, base, faces):
    runs["stage2"]
    words = [f"data.roots=[{faces}]", *arguments["control"]]
    stage = build_stage(load_config(base, [*words, "fidelity.freeze=[encoder,position_emb]"]))
    trained = {name.split(".")[0] for name, p in stage.net.named_parameters() if p.requires_grad}
    assert not trained & {"encoder", "position_emb", "quantize", "generator"} and "ft_layers" in trained
    side = next(iter(stage.net.fuse_convs_dict))
    stage = build_stage(load_config(base, [*words, f"fidelity.freeze=[fuse_convs_dict.{side}]"]))
    for name, block in stage.net.fuse_convs_dict.items():
        assert all(p.requires_grad == (name != side) for p in block.parameters())
    with pytest.raises(ConfigError, match="'fidelity.freeze': 'encodr' is none of"):
        build_stage(load_config(base, [*words, "fidelity.freeze=[encodr]"]))


def test_codebook_and_generator_may_come_from_a_stage_1_that_went_on(runs, arguments, base, faces, tmp_path):
    """All else, encoder and Transformer too, is that of ``init``."""
    first = read_checkpoint(runs["stage1"] / "last.ckpt")
    first["ema"] = {k: v + 1 if v.is_floating_point() else v for k, v in first["ema"].items()}
    torch.save(first, tmp_path / "further.ckpt")
    runs["stage2"]
    words = [f"data.roots=[{faces}]", *arguments["control"], f"vqgan={tmp_path / 'further.ckpt'}"]
    with pytest.raises(ConfigError, match="codebook"):
        build_stage(load_config(base, words))
    state = build_stage(load_config(base, [*words, "fidelity.generator_from_vqgan=true"])).net.state_dict()
    second = read_checkpoint(runs["stage2"] / "last.ckpt")["ema"]
    for k, v in second.items():
        further = k.split(".")[0] in ("quantize", "generator")
        assert torch.equal(state[k], first["ema"][k] if further else v) or k.startswith("fuse"), k


def test_the_anchor_holds_the_picture_beyond_the_face_to_that_of_a_frozen_network(runs, arguments, base, faces):
    """Nothing to pay at the anchor itself, nothing for a change inside the face, and the anchor never moves."""
    path = runs["stage3_id"] / "last.ckpt"
    words = [f"data.roots=[{faces}]", *arguments["control"], f"init={path}", "loss.gan=0"]
    plain = build_stage(load_config(base, words)).eval()
    stage = build_stage(load_config(base, [*words, "loss.anchor=3", f"loss.anchor_weights={path}"])).eval()
    data = PairDataset(stage.config.data, stage.config.degradation, 0)
    batch = collate([data[0], data[1], data[2]])
    with torch.no_grad():
        out = stage(batch, 0)
        assert float(out["anchor"]) == 0 and torch.equal(out["total"], plain(batch, 0)["total"])
        stage.net.generator.blocks[-1].bias += 0.1
        out = stage(batch, 0)
    assert float(out["anchor"]) == pytest.approx(0.01 * float(stage.rim.mean()), rel=1e-4)
    stage.config.loss.anchor_shift = False  # a shift of colour is free then, and nothing else
    with torch.no_grad():
        assert float(stage(batch, 0)["anchor"]) < 1e-10
        tilt = torch.linspace(-0.1, 0.1, 64).expand(1, 3, 64, 64)
        black = torch.zeros(1, 3, 64, 64)
        shifted, level = (stage._kept(tilt + shift, black, torch.ones(1)) for shift in (0.3, 0.0))
        assert float(shifted) == pytest.approx(float(level), rel=1e-4) and float(level) > 0
    stage.config.loss.anchor_shift = True
    plain.net.load_state_dict(stage.net.state_dict())
    with torch.no_grad():
        without = float(plain(batch, 0)["total"])
    assert float(out["total"]) == pytest.approx(without + 3 * float(out["anchor"]), rel=1e-5)
    image = torch.zeros(1, 3, 64, 64, requires_grad=True)
    (pull,) = torch.autograd.grad(stage._kept(image, torch.zeros(1, 3, 64, 64), torch.ones(1)), image)
    assert bool((pull[0, :, 24:40, 24:40] == 0).all()) and bool((pull[0, :, 0] != 0).any())

    stage.train()
    stage(batch, 0)["total"].backward()
    assert not stage.anchor.training and all(p.grad is None for p in stage.anchor.parameters())
    assert all(p.grad is not None for p in stage.net.encoder.parameters())


DRAWN = {"degraded": 0, "across": 1, "down": 2, "scale": 3, "turn": 4, "blend": 5, "mix": 6}  # rows of what is drawn


def test_views_of_a_recogniser_shift_scale_and_turn_as_far_as_told(base, faces, arguments, monkeypatch):
    """Two dots of the crop, seen at the end of what may be drawn; 0.1 of half a side of 112 px is 5.6 px."""
    words = [f"data.roots=[{faces}]", *arguments["distil"], "recogniser.shift=0.1", "recogniser.degrade=0.5"]
    stage = build_stage(load_config(base, words))
    y, x = torch.meshgrid(torch.arange(112.0), torch.arange(112.0), indexing="ij")
    dots = torch.stack([torch.exp(-((x - 30) ** 2 + (y - 55.5) ** 2) / 18),
                        torch.exp(-((x - 55.5) ** 2 + (y - 80) ** 2) / 18), torch.zeros(112, 112)])  # fmt: skip
    monkeypatch.setattr(recogniser, "arcface_crop", lambda image: image)
    black = torch.zeros(2, 112, 112, 3, dtype=torch.uint8)
    crops = dots.mul(255).byte().permute(1, 2, 0)[None].repeat(2, 1, 1, 1)
    crops[1] = 0

    def viewed(**rows: float) -> torch.Tensor:
        drawn = torch.full((7, 2), 0.5)
        for name, value in rows.items():
            drawn[DRAWN[name]] = value
        monkeypatch.setattr(recogniser, "uniform", lambda positions, seed, name, count: drawn)
        batch = {"truth": crops, "degraded": black, "position": torch.arange(2)}
        return stage._views({k: v.permute(0, 3, 1, 2) if k != "position" else v for k, v in batch.items()}) / 2 + 0.5

    def places(**rows: float) -> list[tuple[float, float]]:
        first = viewed(mix=1.0, **rows)[0]
        return [(float((d * x).sum() / d.sum()), float((d * y).sum() / d.sum())) for d in first[:2]]

    def near(found, *wanted) -> None:
        assert [round(v, 1) for place in found for v in place] == pytest.approx([v for p in wanted for v in p], abs=0.3)

    near(places(), (30, 55.5), (55.5, 80))
    near(places(across=1.0), (30 - 5.6, 55.5), (55.5 - 5.6, 80))
    near(places(across=0.0), (30 + 5.6, 55.5), (55.5 + 5.6, 80))
    near(places(down=1.0), (30, 55.5 - 5.6), (55.5, 80 - 5.6))
    near(places(scale=1.0), (55.5 - 25.5 / 1.1, 55.5), (55.5, 55.5 + 24.5 / 1.1))
    cos, sin = math.cos(0.1), math.sin(0.1)
    near(places(turn=1.0), (55.5 - 25.5 * cos, 55.5 + 25.5 * sin), (55.5 + 24.5 * sin, 55.5 + 24.5 * cos))
    assert viewed(degraded=0.49, mix=1.0).max() < 0.01 < viewed(degraded=0.5, mix=1.0).max()
    whole, mixed = viewed(mix=1.0, blend=1.0), viewed(mix=0.0, blend=1.0)  # half of the next face, which is black
    assert torch.allclose(mixed[0], whole[0] / 2, atol=1e-3) and torch.allclose(mixed[1], whole[0] / 2, atol=1e-3)
    assert torch.allclose(viewed(mix=0.0, blend=0.5)[0], whole[0] * 0.75, atol=1e-3)
