"""Keys and types of a configuration: what is wrong is refused by its name."""
from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from training.config import ConfigError, from_dict, load_config, save_yaml, to_dict

CONFIGS = sorted((Path(__file__).parents[2] / "training" / "configs").glob("*/*.yaml"))
CONFIGS = [path for path in CONFIGS if path.name != "first.yaml"]  # a list of phases: test_train_replay


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_shipped_configurations_are_valid_and_survive_a_round_trip(path, tmp_path):
    config = load_config(path)
    save_yaml(config, tmp_path / "again.yaml")
    assert load_config(tmp_path / "again.yaml") == from_dict(to_dict(config)) == config
    assert "x4" in config.degradations and "x8" in config.degradations or path.parent.name == "full"


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "1E-4"])
def test_scientific_notation_is_a_number(tmp_path, text):
    (tmp_path / "c.yaml").write_text(f"optim: {{lr: {text}}}")
    assert load_config(tmp_path / "c.yaml").optim.lr == load_config(None, [f"optim.lr={text}"]).optim.lr == 1e-4


def test_the_network_is_configured_by_the_names_and_numbers_of_its_own_config():
    from dataclasses import fields

    from idcodeformer.networks.codeformer import CodeFormerConfig
    from training.config import NetConfig

    assert [field.name for field in fields(NetConfig)] == [field.name for field in fields(CodeFormerConfig)]
    assert CodeFormerConfig.from_dict(vars(NetConfig())) == CodeFormerConfig()
    first, second = NetConfig(), pickle.loads(pickle.dumps(NetConfig(nf=8)))  # loaders and launchers send it on
    first.ch_mult.append(16)
    assert second.nf == 8 and second.ch_mult == [1, 2, 2, 4, 4, 8] == NetConfig().ch_mult


def test_command_line_over_file_over_base_over_defaults(tmp_path):
    (tmp_path / "base.yaml").write_text("steps: 5\nbatch: 6\nloss: {l1: 2.0}")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.yaml").write_text("base: ../base.yaml\nbatch: 7\nloss: {gan: 0.5}")
    config = load_config(tmp_path / "sub" / "c.yaml", ["seed=9", "data.roots=[/a, /b]"])
    assert (config.steps, config.batch, config.seed, config.loss.l1, config.loss.gan) == (5, 7, 9, 2.0, 0.5)
    assert config.data.roots == ["/a", "/b"] and config.save_every == 500


WRONG = [
    ("optim.lrr", "1"), ("optim.lr", "fast"), ("optim.lr", "-1"), ("optim.lr", ".nan"), ("optim.betas", "[0.9]"),
    ("optim.schedule", "linear"), ("optim", "3"), ("nonsense", "1"), ("steps", "1.5"), ("steps", "true"),
    ("steps", "0"),
    ("steps", "null"), ("stage", "stage4"), ("precision", "16-true"), ("data.roots", "/folder"),
    ("data.roots", "{a: 1}"),
    ("data.roots[1]", "[/a, [/b]]"), ("data.hflip", "7"), ("data.workers", "-1"), ("data.size", "100"),
    ("degradation.sigma[1]", "[1, wide]"), ("degradation.sigma", "[1, 2, 3]"), ("degradation.jpeg", "[80, 30]"),
    ("degradation.jpeg", "[0, 50]"), ("degradation.downscale", "[0, 4]"), ("degradation.kernel_size", "20"),
    ("degradation.gray", "2"), ("degradations.x4.sigm", "[1, 2]"), ("degradations.x4.noise", "[-1, 2]"),
    ("degradations.x4", "3"), ("net.ch_mult[1]", "[1, x]"), ("net.ch_mult[0]", "[{a: 1}]"), ("loss.gan_norm", "layer"),
    ("loss.perceptual_every", "0"), ("loss.l1", "[1]"), ("loss.mse", "-1"), ("loss.ssim", "-1"),
    ("loss.anchor", "-1"), ("loss.anchor", "1"),
    ("loss.identity_seen", "-1"), ("fidelity.code_selection", "argmax"), ("fidelity.full", "1.5"),
    ("recogniser.method", "copy"),
]  # fmt: skip


@pytest.mark.parametrize("where", ["file", "command line"])
@pytest.mark.parametrize("key, value", WRONG, ids=[f"{k}={v}" for k, v in WRONG])
def test_wrong_values_name_the_key(tmp_path, key, value, where):
    path = key.split("[")[0]
    if where == "file":
        *groups, last = path.split(".")
        text = f"{last}: {value}"
        for group in reversed(groups):
            text = f"{group}: {{{text}}}"
        (tmp_path / "c.yaml").write_text(text)
        arguments = (tmp_path / "c.yaml", [])
    else:
        arguments = (None, [f"{path}={value}"])
    with pytest.raises(ConfigError) as caught:
        load_config(*arguments)
    assert f"'{key}'" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words, key",
    [
        (["batch=5", "devices=2"], "batch"),
        (["batch=6", "devices=2", "nodes=2"], "batch"),
        (["data.roots=[/a]", "data.shards=[/b.tar]"], "data.shards"),
        (["stage=stage3", "loss.identity=0.5"], "loss.identity"),
        (["stage=stage1", "loss.gan=1", "loss.l1=0", "loss.perceptual_every=2"], "loss.gan"),
        (["fidelity.low=0.7", "fidelity.high=0.3"], "fidelity.low"),
    ],
)
def test_values_that_do_not_go_together_name_a_key(words, key):
    with pytest.raises(ConfigError, match=f"'{key}'"):
        load_config(None, words)


@pytest.mark.parametrize("word", ["steps", "=3", "optim.lr"])
def test_overrides_are_key_and_value(word):
    with pytest.raises(ConfigError, match="key=value"):
        load_config(None, [word])


@pytest.mark.parametrize(
    "text, said",
    [
        ("- a\n- b", "keys and values"),
        ("a: [1", "not YAML"),
        ("steps: 1\nsteps: 2", "not YAML"),
        ("base: c.yaml", "own base"),
    ],
)
def test_files_that_are_no_configuration(tmp_path, text, said):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_config(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match=r"no configuration .*absent\.yaml"):
        load_config(tmp_path / "absent.yaml")


def test_unknown_key_is_answered_with_the_near_ones():
    with pytest.raises(ConfigError, match="did you mean perceptual_weights"):
        load_config(None, ["loss.perceptual_weight=x"])
