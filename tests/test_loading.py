"""Weight files become the networks they were saved from, and bad ones are refused by name."""
from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import warnings
import zipfile

import pytest
import torch
from torch import nn

from idcodeformer.errors import CorruptWeights, MissingWeights, UnsafeWeights, UnsupportedWeights
from idcodeformer.networks.arcface import GRAY_CONFIG, IRSE50, IResNet, IResNetConfig, ResNet18Gray
from idcodeformer.networks.codeformer import CodeFormer, CodeFormerConfig
from idcodeformer.networks.mobileface import MobileFace, MobileFaceConfig
from idcodeformer.networks.mobilefacenet import FoldedMobileFaceNet, MobileFaceNet, MobileFaceNetConfig
from idcodeformer.networks.retinaface import RetinaFace
from idcodeformer.networks.vqgan import PatchDiscriminator, VQAutoEncoder, VQGANConfig
from idcodeformer.runtime.skeleton import skeletons
from idcodeformer.weights import loading

TINY = dict(img_size=32, nf=8, ch_mult=(1, 2), codebook_size=16, emb_dim=8)
CODEFORMERS = {
    "small": CodeFormerConfig(**TINY, dim_embd=32, dim_mlp=64, n_layers=1, connect_list=(32,)),
    "two levels of attention, three blocks": CodeFormerConfig(
        img_size=32, nf=8, ch_mult=(1, 3, 4), res_blocks=3, attn_resolutions=(16, 8), codebook_size=7, emb_dim=12,
        dim_embd=24, dim_mlp=40, n_layers=2, connect_list=(8, 16, 32),
    ),
    "no attention on the way, no fusion": CodeFormerConfig(
        img_size=24, nf=4, ch_mult=(2, 1), res_blocks=1, attn_resolutions=(), codebook_size=5, emb_dim=6, dim_embd=16,
        dim_mlp=8, n_layers=1, connect_list=(),
    ),
    "one level": CodeFormerConfig(
        img_size=8, nf=4, ch_mult=(2,), attn_resolutions=(8,), codebook_size=4, emb_dim=4, dim_embd=8, dim_mlp=8,
        n_layers=1, connect_list=(8,),
    ),
}  # fmt: skip
VQGANS = {
    "small": VQGANConfig(**TINY),
    "attention everywhere": VQGANConfig(
        img_size=64, nf=4, ch_mult=(1, 2, 3), res_blocks=1, attn_resolutions=(64, 32, 16), codebook_size=8, emb_dim=6
    ),
    "no attention": VQGANConfig(img_size=32, nf=4, ch_mult=(1, 2), attn_resolutions=(), codebook_size=9),
}
WRAPPINGS = ("params_ema", "params", "state_dict", None)


def randomised(module: nn.Module) -> nn.Module:
    """Every tensor is different from what a fresh module has, so that a load that did nothing is noticed."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if value.is_floating_point() and value.ndim > 1:
                fan = value[0].numel()
                value.copy_(torch.randn(value.shape, generator=generator) / fan**0.5)
            elif value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) * 0.2 + (0.5 if "running_var" in key else 0.1))
    return module.eval()


def same_output(a: nn.Module, b: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        first, second = a(x), b(x)
    for u, v in zip(*((t,) if isinstance(t, torch.Tensor) else t for t in (first, second)), strict=True):
        if isinstance(u, torch.Tensor):
            assert u.isfinite().all()
            torch.testing.assert_close(u, v, rtol=1e-5, atol=1e-6)  # equal weights, but memory may be aligned otherwise


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("name", CODEFORMERS)
def test_codeformer_comes_back_from_pth_by_shapes_alone(tmp_path, name, wrapping, prefix):
    net = randomised(CodeFormer(CODEFORMERS[name]))
    state = {prefix + k: v for k, v in net.state_dict().items()}
    torch.save({wrapping: state} if wrapping else state, tmp_path / "net.pth")
    back = loading.build(tmp_path / "net.pth", kind="codeformer")
    assert back.config == net.config
    assert not back.training
    assert all(value.equal(back.state_dict()[key]) for key, value in net.state_dict().items())
    if wrapping == "params_ema" and not prefix:
        side = net.config.img_size
        same_output(net, back, torch.rand(1, 3, side, side) * 2 - 1)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", VQGANS)
def test_vqgan_comes_back_from_pth_by_shapes_alone(tmp_path, name, legacy):
    net = randomised(VQAutoEncoder(VQGANS[name]))
    state = {"params_ema": net.state_dict(), "params": VQAutoEncoder(VQGANS[name]).state_dict()}
    torch.save(state, tmp_path / "net.pth", _use_new_zipfile_serialization=not legacy)
    back = loading.build(tmp_path / "net.pth", kind="vqgan")
    same_output(net, back, torch.rand(1, 3, 32, 32) * 2 - 1)
    if VQGANS[name].attn_resolutions:
        assert back.config == net.config


def test_safetensors_keep_what_shapes_do_not_show(tmp_path):
    config = CodeFormerConfig(
        **TINY, attn_resolutions=(16,), dim_embd=32, dim_mlp=64, n_head=2, n_layers=2, connect_list=(32,)
    )
    net = randomised(CodeFormer(config))
    loading.save(net, tmp_path / "net.safetensors", {"licence": "test"})
    back = loading.build(tmp_path / "net.safetensors")
    assert back.config == config and back.config.n_head == 2
    assert back.weights_metadata["licence"] == "test"
    assert json.loads(back.weights_metadata["config"])["n_head"] == 2
    same_output(net, back, torch.rand(1, 3, 32, 32) * 2 - 1)
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


def test_a_config_beside_the_weights_of_a_pth_is_used(tmp_path):
    net = CodeFormer(CodeFormerConfig(**TINY, dim_embd=32, dim_mlp=64, n_head=4, n_layers=1, connect_list=()))
    torch.save({"params": net.state_dict(), "config": net.config.to_dict()}, tmp_path / "net.pth")
    assert loading.build(tmp_path / "net.pth").config.n_head == 4


def test_a_network_in_use_owns_its_memory(tmp_path):
    net = CodeFormer(CODEFORMERS["one level"])
    for first in (net.state_dict(), loading.save(net, tmp_path / "net.safetensors")):
        back = loading.build(first)
        with torch.no_grad():
            back.position_emb.add_(1)
        assert not back.position_emb.equal(loading.build(first).position_emb)
    assert (tmp_path / "net.safetensors").stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_half_precision_narrows_weights_and_leaves_norms(tmp_path):
    net = randomised(CodeFormer(CODEFORMERS["small"]))
    loading.save(net, tmp_path / "half.safetensors", dtype=torch.float16)
    state, _ = loading.read_state(tmp_path / "half.safetensors")
    assert state["quantize.embedding.weight"].dtype == torch.float16
    assert state["encoder.blocks.1.norm1.weight"].dtype == torch.float32
    back = loading.build(tmp_path / "half.safetensors")
    assert {p.dtype for p in back.parameters()} == {torch.float32}
    torch.testing.assert_close(back.quantize.embedding.weight, net.quantize.embedding.weight, rtol=1e-3, atol=1e-4)


STAGES = ((2, 8, 5, 2), (4, 12, 1, 2), (2, 12, 6, 1), (4, 12, 1, 2), (2, 12, 2, 1))
NARROW = dict(layers=(2, 1, 3, 1), widths=(4, 8, 8, 16), embedding_dim=6)
RECOGNISERS = [
    IResNet(IResNetConfig(**NARROW)),
    IRSE50(IResNetConfig(layers=(1, 2, 1, 1), widths=(16, 32, 48, 64), embedding_dim=8)),
    ResNet18Gray(IResNetConfig(**NARROW, input_size=128)),
    MobileFaceNet(MobileFaceNetConfig(STAGES, stem=8, head=16, embedding_dim=5, input_width=96)),
    FoldedMobileFaceNet(MobileFaceNetConfig(STAGES, stem=8, head=16, embedding_dim=9)),
    MobileFace(MobileFaceConfig(stem=8, channels=(8, 12, 12, 16), repeats=2, expansion=2, embedding_dim=9)),
]


@pytest.mark.parametrize("net", RECOGNISERS, ids=lambda n: type(n).__name__)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_recognisers_come_back(tmp_path, net, suffix):
    randomised(net)
    path = tmp_path / f"net.{suffix}"
    if suffix == "pth":
        torch.save({f"module.{k}": v for k, v in net.state_dict().items()}, path)
    else:
        loading.save(net, path)
    back = loading.build(path, kind="recogniser")
    assert type(back) is type(net)
    assert back.config == net.config
    same_output(net, back, torch.rand(1, 3, 112, 112) * 2 - 1)


def test_default_recognisers_are_recognised_by_shape():
    with torch.device("meta"):
        nets = [IResNet(IResNetConfig(layers=(3, 13, 30, 3))), IRSE50(), ResNet18Gray(), MobileFaceNet()]
    for net in nets:
        architecture = loading.detect(net.state_dict())
        assert architecture.name == type(net).__name__
        assert architecture.recover(net.state_dict()) == net.config
    assert nets[2].config == GRAY_CONFIG


@pytest.mark.parametrize("arguments", [dict(ndf=8, n_layers=3), dict(ndf=4, n_layers=4, norm="group")])
def test_discriminator_comes_back(arguments):
    net = randomised(PatchDiscriminator(**arguments))
    back = loading.build(net.state_dict(), kind="discriminator")
    same_output(net, back, torch.rand(1, 3, 48, 48))


@pytest.mark.parametrize("network", ["mobile0.25", "resnet50"])
def test_retinaface_is_facexlibs(tmp_path, network):
    retinaface = pytest.importorskip("facexlib.detection.retinaface")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # facexlib names a torchvision argument by its old name
        net = randomised(retinaface.RetinaFace(network, device=torch.device("cpu"))).eval()
    torch.save({f"module.{k}": v for k, v in net.state_dict().items()}, tmp_path / "net.pth")
    back = loading.build(tmp_path / "net.pth", kind="detector")
    assert back.config == {"network_name": network}
    assert all(value.equal(back.state_dict()[key]) for key, value in net.state_dict().items())
    pixels = torch.randn(2, 3, 77, 101)  # sides that no level divides
    with torch.no_grad():
        for theirs, ours in zip(net(pixels), back(pixels), strict=True):
            assert theirs.shape == ours.shape and float(theirs.std()) > 0
            assert torch.allclose(theirs, ours, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_an_unknown_retinaface_is_refused():
    with pytest.raises(ValueError, match="'mobile0.5' is none of mobile0.25, resnet50"):
        RetinaFace("mobile0.5")


def test_building_imports_no_compiler(root):
    """torch's compiler, torchvision and facexlib take seconds and hundreds of MB, and nothing here needs them."""
    code = """
import sys
from idcodeformer import FacePipeline, load_detector, load_parser, load_recogniser, load_restorer
from idcodeformer.files.reading import read
pipeline = FacePipeline(load_restorer(), load_detector(), load_recogniser(), load_parser())
result = pipeline(read("idcodeformer/assets/group.jpg").frames[..., :400, :400])
print(sorted({"torch._dynamo", "torch._inductor", "sympy", "torchvision", "facexlib", "numba"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_skeletons_have_shapes_and_no_memory():
    with skeletons():
        net = torch.nn.Sequential(torch.nn.Embedding(4, 3), torch.nn.Linear(3, 2))
        loose = torch.nn.init.constant_(tensor=torch.empty(2), val=1.0)
    assert all(p.is_meta for p in net.parameters()) and loose.is_meta
    assert float(torch.nn.init.ones_(torch.empty(1))) == 1  # outside values are drawn as ever


def test_parsenet_comes_back(tmp_path):
    parsenet = pytest.importorskip("facexlib.parsing.parsenet")
    net = parsenet.ParseNet(in_size=64, out_size=64, base_ch=32, res_depth=1).eval()
    loading.save(loading.build(net.state_dict()), tmp_path / "net.safetensors")
    back = loading.build(tmp_path / "net.safetensors", kind="parser")
    same_output(net, back, torch.rand(1, 3, 16, 16))


# What must be refused, and how.


def tiny_file(path, **more):
    torch.save({"params_ema": CodeFormer(CODEFORMERS["small"]).state_dict(), **more}, path)
    return path


def test_missing_file_is_named(tmp_path):
    with pytest.raises(MissingWeights, match="nowhere.pth"):
        loading.build(tmp_path / "nowhere.pth")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_truncated_file_is_refused(tmp_path, suffix, keep):
    path = tmp_path / f"codeformer.{suffix}"
    if suffix == "pth":
        tiny_file(path)
    else:
        loading.save(CodeFormer(CODEFORMERS["small"]), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(CorruptWeights, match="damaged or cut off") as caught:
        loading.build(path)
    if suffix == "pth":
        assert "376637898" in str(caught.value) and "models download codeformer" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"<html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "Git LFS pointer"),
        (b"\x00" * 5000, "not a weight file"),
        (b"PK\x03\x04" + b"\x00" * 500, "damaged"),
        (b"\x80\x02garbage", "damaged"),
        ((2**40).to_bytes(8, "little") + b"{", "not a weight file"),
        ((50).to_bytes(8, "little") + b"{" + b"x" * 100, "damaged"),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_what_is_no_weight_file_is_refused(tmp_path, content, word, suffix):
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(content)
    with pytest.raises(CorruptWeights, match=word) as caught:
        loading.build(path)
    assert str(path) in str(caught.value)


class Evil:
    def __init__(self, target: str):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle", "nested", "protocol 0"])
def test_a_pickle_that_runs_code_is_refused_by_name_and_not_run(tmp_path, form):
    path, target = tmp_path / "evil.pth", tmp_path / "was-run"
    evil = Evil(str(target))
    if form in ("bare pickle", "protocol 0"):
        path.write_bytes(pickle.dumps({"params_ema": evil}, protocol=0 if form == "protocol 0" else 4))
    elif form == "nested":
        tiny_file(path, extra=[{"deep": evil}])
    else:
        torch.save({"params_ema": evil}, path, _use_new_zipfile_serialization=form == "zip")
    if form == "protocol 0":
        with pytest.raises(CorruptWeights):  # not even taken for a pickle
            loading.build(path)
    else:
        with pytest.raises(UnsafeWeights, match=rf"{os.mkdir.__module__}\.mkdir") as caught:
            loading.build(path)
        assert str(path) in str(caught.value)
    assert not target.exists()


def test_what_others_allow_torch_to_load_is_refused_all_the_same(tmp_path):
    path = tmp_path / "net.pth"
    tiny_file(path, when=__import__("datetime").date(2024, 1, 1))
    with torch.serialization.safe_globals([__import__("datetime").date]):
        torch.load(path, weights_only=True)
        with pytest.raises(UnsafeWeights, match="datetime.date"):
            loading.build(path)


def test_a_second_pickle_in_the_archive_is_looked_at(tmp_path):
    path = tiny_file(tmp_path / "net.pth")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("net/more.pkl", pickle.dumps(Evil(str(tmp_path / "was-run"))))
    with pytest.raises(UnsafeWeights, match="mkdir"):
        loading.build(path)


def test_a_zip_glued_to_a_malicious_legacy_file_hides_nothing(tmp_path):
    path, harmless = tmp_path / "evil.pth", tiny_file(tmp_path / "good.pth").read_bytes()
    torch.save({"params": Evil(str(tmp_path / "was-run"))}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes() + harmless)
    with pytest.raises(UnsafeWeights, match="mkdir"):
        loading.build(path)
    assert not (tmp_path / "was-run").exists()


def test_another_architecture_and_another_kind_are_told(tmp_path):
    torch.save(nn.Sequential(nn.Linear(3, 3)).state_dict(), tmp_path / "mlp.pth")
    with pytest.raises(UnsupportedWeights, match="belong to no network known here") as caught:
        loading.build(tmp_path / "mlp.pth")
    assert "mlp.pth" in str(caught.value)
    torch.save(VQAutoEncoder(VQGANS["small"]).state_dict(), tmp_path / "vqgan.pth")
    with pytest.raises(UnsupportedWeights, match="VQAutoEncoder.*not a codeformer"):
        loading.build(tmp_path / "vqgan.pth", kind="codeformer")
    with pytest.raises(UnsupportedWeights, match="not a restorer"):
        loading.build(tmp_path / "vqgan.pth", kind="restorer")
    with pytest.raises(ValueError, match="kind is"):
        loading.build(tmp_path / "vqgan.pth", kind="toaster")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda s: s.pop("feat_emb.bias"), "missing feat_emb.bias"),
        (lambda s: s.update({"extra.weight": torch.zeros(1)}), "unexpected extra.weight"),
        (lambda s: s.update({"feat_emb.weight": torch.zeros(32, 17)}), r"feat_emb.weight is \[32, 17\]"),
        (lambda s: s.update({"feat_emb.bias": torch.full((32,), float("nan"))}), "NaN"),
        (lambda s: s.pop("position_emb"), "unexpected feat_emb"),
        (lambda s: s.pop("encoder.blocks.1.conv2.weight"), "fit no size of CodeFormer"),
    ],
)
def test_a_damaged_state_is_told(tmp_path, change, word):
    state = CodeFormer(CODEFORMERS["small"]).state_dict()
    change(state)
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises((UnsupportedWeights, CorruptWeights), match=word) as caught:
        loading.build(tmp_path / "net.pth")
    assert str(tmp_path / "net.pth") in str(caught.value)


@pytest.mark.parametrize("content", [{"orig": 1, "name": "x"}, [1, 2], {}])
def test_a_pickle_without_tensors_is_told(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UnsupportedWeights, match="tensors"):
        loading.build(tmp_path / "x.pth")


def test_a_wrong_config_in_the_metadata_is_told(tmp_path):
    net = CodeFormer(CODEFORMERS["small"])
    for config in ('{"nf": 32, "wings": 2}', "not json", "[1]"):
        with pytest.raises(UnsupportedWeights, match="CodeFormer"):
            loading.build(net.state_dict(), metadata={"config": config})


def test_nothing_is_left_of_a_save_that_fails(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    loading.save(VQAutoEncoder(VQGANS["small"]), path, {"turn": "first"})
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        loading.save(VQAutoEncoder(VQGANS["small"]), path, {"turn": "second"})
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]
    assert loading.read_state(path)[1]["turn"] == "first"


@pytest.mark.parametrize("value", [10**9, 1e9, -1, "many", None])
def test_a_config_that_asks_for_endless_blocks_is_refused_at_once(tiny_restorer, tmp_path, value):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(str(tiny_restorer), "pt") as file:
        metadata = dict(file.metadata())
    for name in ("n_layers", "res_blocks"):
        config = json.loads(metadata["config"]) | {name: value}
        path = tmp_path / f"{name}.safetensors"
        save_file(load_file(tiny_restorer), path, metadata | {"config": json.dumps(config)})
        with pytest.raises(UnsupportedWeights, match=path.name):
            loading.build(path)


@pytest.mark.parametrize("prefix", ["params_ema.", "net_g.", "module.", "state_dict.net_g.module."])
def test_prefixed_safetensors_load(tiny_restorer, tmp_path, prefix):
    from safetensors.torch import load_file, save_file

    state = load_file(tiny_restorer)
    path = tmp_path / "prefixed.safetensors"
    beside = {"net_d.x": torch.zeros(1)} if prefix == "net_g." else {}
    save_file({prefix + key: value for key, value in state.items()} | beside, path)
    assert loading.build(path).config.img_size == 64


def test_a_torch_zip_named_safetensors_loads(tiny_restorer, tmp_path):
    from safetensors.torch import load_file

    torch.save(load_file(tiny_restorer), tmp_path / "a.safetensors")
    assert loading.build(tmp_path / "a.safetensors").config.img_size == 64


def test_numbers_behind_a_prefix_belong_to_the_network():
    from idcodeformer.weights.reading import strip_prefix

    assert set(strip_prefix({"model.0.weight": torch.zeros(1)})) == {"model.0.weight"}
