"""From a training checkpoint to the file that the pack loads."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from idcodeformer.networks.arcface import IResNet, IResNetConfig
from idcodeformer.networks.codeformer import CodeFormer
from idcodeformer.networks.vqgan import VQAutoEncoder
from idcodeformer.weights.loading import build
from training.__main__ import main
from training.checkpoint import write_checkpoint
from training.config import ConfigError, TrainConfig, load_config, to_dict
from training.stages import codeformer_config, vqgan_config
from training.tools.export import export

NET = [
    "net.img_size=64", "net.nf=32", "net.ch_mult=[1,2,2]", "net.attn_resolutions=[16]", "net.codebook_size=32",
    "net.emb_dim=16", "net.dim_embd=32", "net.dim_mlp=64", "net.n_head=4", "net.n_layers=1", "net.connect_list=[32]",
    "net.res_blocks=1", "data.size=64", "data.roots=[/home/someone/secret/lfw]",
    "loss.identity_weights=[/home/someone/teacher.safetensors]",
]  # fmt: skip


def network(config: TrainConfig) -> torch.nn.Module:
    if config.stage == "recogniser":
        rule = config.recogniser
        return IResNet(IResNetConfig(tuple(rule.layers), tuple(rule.widths), rule.embedding_dim))
    return VQAutoEncoder(vqgan_config(config)) if config.stage == "stage1" else CodeFormer(codeformer_config(config))


def checkpoint(folder: Path, stage: str, *more: str) -> tuple[Path, torch.nn.Module, torch.nn.Module]:
    """A checkpoint file, its averaged network and that of its last step."""
    config = load_config(None, [f"stage={stage}", *NET, *more])
    torch.manual_seed(0)
    averaged, last = network(config), network(config)
    state = {
        "stage": stage, "config": to_dict(config), "step": 123, "ema": averaged.state_dict(),
        "model": {**{f"net.{k}": v for k, v in last.state_dict().items()}, "usage": torch.zeros(3)},
    }  # fmt: skip
    path = folder / f"{stage}.ckpt"
    write_checkpoint(state, path)
    return path, averaged, last


def same(a: torch.nn.Module, b: torch.nn.Module, tolerance: float = 0.0) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(k == m and torch.allclose(v.float(), w.float(), rtol=0, atol=tolerance) for (k, v), (m, w) in pairs)


@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage3_id"])
def test_the_averaged_network_comes_out(tmp_path: Path, stage: str) -> None:
    path, averaged, last = checkpoint(tmp_path, stage)
    export(path, tmp_path / "out.safetensors")
    loaded = build(tmp_path / "out.safetensors")
    assert type(loaded) is type(averaged) and same(loaded, averaged) and not same(loaded, last)
    assert loaded.config == averaged.config  # also n_head, which no tensor shows


def test_a_recogniser_of_any_width(tmp_path: Path) -> None:
    layers = ["recogniser.layers=[1,2,1,1]", "recogniser.widths=[8,16,24,32]", "recogniser.embedding_dim=48"]
    path, averaged, _ = checkpoint(tmp_path, "recogniser", *layers)
    export(path, tmp_path / "r.safetensors")
    loaded = build(tmp_path / "r.safetensors", "recogniser")
    faces = torch.rand(2, 3, 112, 112) * 2 - 1
    torch.testing.assert_close(loaded(faces), averaged.eval()(faces))


def test_raw_takes_the_last_step(tmp_path: Path) -> None:
    path, _, last = checkpoint(tmp_path, "stage3")
    export(path, tmp_path / "raw.safetensors", averaged=False)
    assert same(build(tmp_path / "raw.safetensors"), last)


def test_metadata_says_what_it_is_and_not_where_it_was_made(tmp_path: Path) -> None:
    path, _, _ = checkpoint(tmp_path, "stage3_id", "loss.identity=0.5", "seed=7")
    metadata = export(path, tmp_path / "m.safetensors", licence="research", data_note="LFW")
    stored = build(tmp_path / "m.safetensors").weights_metadata
    assert {**stored, **metadata} == stored
    assert (stored["stage"], stored["step"], stored["seed"]) == ("stage3_id", "123", "7")
    assert (stored["licence"], stored["data"], stored["name"]) == ("research", "LFW", "m")
    assert "someone" not in json.dumps(stored)
    training = json.loads(stored["training"])
    assert training["loss"]["identity_weights"] == ["teacher.safetensors"] and training["loss"]["identity"] == 0.5


def test_without_a_note_the_folder_is_named(tmp_path: Path) -> None:
    path, _, _ = checkpoint(tmp_path, "stage3")
    assert export(path, tmp_path / "n.safetensors")["data"] == "Folders: lfw"


def test_fp16_is_half_the_size_and_close(tmp_path: Path) -> None:
    path, averaged, _ = checkpoint(tmp_path, "stage3")
    export(path, tmp_path / "full.safetensors")
    export(path, tmp_path / "half.safetensors", fp16=True)
    sizes = [(tmp_path / f"{n}.safetensors").stat().st_size for n in ("half", "full")]
    assert sizes[0] < 0.6 * sizes[1]
    loaded = build(tmp_path / "half.safetensors")
    assert same(loaded, averaged, tolerance=2e-3) and next(loaded.parameters()).dtype == torch.float32


def test_fp16_refuses_what_overflows(tmp_path: Path) -> None:
    path, averaged, _ = checkpoint(tmp_path, "stage3")
    state = torch.load(path, weights_only=True)
    state["ema"]["position_emb"][0, 0] = 1e6
    torch.save(state, path)
    with pytest.raises(ConfigError, match="without --fp16"):
        export(path, tmp_path / "h.safetensors", fp16=True)


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    path, _, _ = checkpoint(tmp_path, "stage3")
    out = tmp_path / "there.safetensors"
    out.write_bytes(b"mine")
    with pytest.raises(ConfigError, match="--force"):
        export(path, out)
    assert out.read_bytes() == b"mine"
    export(path, out, force=True)
    assert isinstance(build(out), CodeFormer)
    with pytest.raises(ConfigError, match="ending"):
        export(path, tmp_path / "model.pth")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _, _ = checkpoint(tmp_path, "stage3")
    out = tmp_path / "sub" / "model.safetensors"
    assert main(["export", str(path), str(out), "--fp16", "--data-note", "LFW"]) == 0
    assert out.is_file() and "stage3, 123 steps" in capsys.readouterr().out
    assert main(["export", str(tmp_path / "no.ckpt"), str(out), "--force"]) == 2
    assert "no checkpoint" in capsys.readouterr().err
    (tmp_path / "bad.ckpt").write_bytes(b"PK\x03\x04 cut off")
    assert main(["export", str(tmp_path / "bad.ckpt"), str(out), "--force"]) == 2
    assert isinstance(build(out), CodeFormer)
