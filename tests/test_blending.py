"""Weights between two trainings of one network."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from idcodeformer.cli import main
from idcodeformer.errors import BadOption, UnsupportedWeights
from idcodeformer.networks.codeformer import CodeFormer
from idcodeformer.weights.blending import blend
from idcodeformer.weights.loading import build, save
from idcodeformer.weights.store import sha256_of
from tests.tiny import TINY


@pytest.fixture
def pair(tmp_path):
    """Two files of one network: the second has every weight but the codebook moved."""
    torch.manual_seed(0)
    net = CodeFormer(TINY)
    first = save(net, tmp_path / "first.safetensors", {"licence": "terms of A"})
    for name, value in net.named_parameters():
        if not name.startswith("quantize"):
            value.data += torch.randn_like(value) * 0.1
    return first, save(net, tmp_path / "second.safetensors", {"licence": "terms of B"})


@pytest.mark.parametrize("strength", [0.0, 0.6, 1.0, 1.5, -0.5])
def test_every_tensor_lies_on_the_line(pair, strength) -> None:
    a, b = (build(file).state_dict() for file in pair)
    net, texts = blend(*pair, strength)
    for name, value in net.state_dict().items():
        assert torch.allclose(value, a[name] + strength * (b[name] - a[name]), atol=1e-6), name
    assert texts["blend"] == f"{strength:g}" and texts["licence"] == "terms of A And: terms of B"
    assert all(f"{file.name} {sha256_of(file)}" in texts["blend_of"] for file in pair)


def test_fusion_that_the_first_lacks_grows_along_the_line(pair, tmp_path) -> None:
    torch.manual_seed(1)
    b = build(pair[1])
    narrow = CodeFormer(replace(TINY, connect_list=TINY.connect_list[:-1]))
    missing, extra = narrow.load_state_dict({k: v for k, v in b.state_dict().items() if k in narrow.state_dict()})
    assert not missing and not extra
    first = save(narrow, tmp_path / "narrow.safetensors", {"licence": "terms of C"})
    x, lacking = torch.rand(1, 3, TINY.img_size, TINY.img_size), f"fuse_convs_dict.{TINY.connect_list[-1]}."
    for strength in (0.0, 0.4, 1.0):
        net, texts = blend(first, pair[1], strength)
        assert net.config == TINY and texts["licence"] == "terms of C And: terms of B"
        for name, value in net.state_dict().items():
            last = name.startswith(lacking) and (".scale.2." in name or ".shift.2." in name)
            assert torch.allclose(value, b.state_dict()[name] * (strength if last else 1), atol=1e-6), name
        if strength in (0.0, 1.0):
            assert torch.allclose(net(x, 1.0)[0], (narrow, b)[int(strength)](x, 1.0)[0], atol=1e-5)
    with pytest.raises(UnsupportedWeights, match="only two trainings of one network"):
        blend(pair[1], first, 0.5)  # B's fusion is what grows


def test_only_trainings_of_one_network_are_blended(pair, tmp_path) -> None:
    other = CodeFormer(replace(TINY, n_layers=2))
    save(other, tmp_path / "other.safetensors")
    with pytest.raises(UnsupportedWeights, match="only two trainings of one network"):
        blend(pair[0], tmp_path / "other.safetensors", 0.5)
    net = build(pair[1])
    torch.nn.init.normal_(net.quantize.embedding.weight)
    save(net, tmp_path / "codes.safetensors")
    with pytest.raises(UnsupportedWeights, match="codebooks of their own"):
        blend(pair[0], tmp_path / "codes.safetensors", 0.5)
    for strength in (3.5, -1.1, float("nan")):
        with pytest.raises(BadOption, match="strength"):
            blend(*pair, strength)


def test_the_command_writes_a_file_that_loads_and_says_what_it_is(pair, tmp_path, capsys) -> None:
    out = tmp_path / "mix.safetensors"
    command = ["models", "blend", str(pair[0]), str(pair[1]), "0.25", str(out)]
    assert main([*command, "--fp16"]) == 0
    told = capsys.readouterr().out
    assert "first + 0.25 (second - first)" in told and "terms of A And: terms of B" in told
    net = build(out)
    assert net.weights_metadata["blend"] == "0.25" and net.config == TINY
    before = out.read_bytes()
    assert main(command) == 2 and out.read_bytes() == before
    assert "exists already" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0 and out.read_bytes() != before
    assert main([*command[:5], str(pair[0]), "--overwrite"]) == 2
    assert "one of the inputs" in capsys.readouterr().err
    assert main([*command[:5], "mix.pth"]) == 1
