"""The engine does what the network does, and leaves the network alone."""
from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from idcodeformer.errors import BadOption, NoDevice
from idcodeformer.identity.recogniser import IdentityRecogniser
from idcodeformer.networks.codeformer import CodeFormer, CodeFormerConfig
from idcodeformer.restoration.codeformer import CodeFormerRestorer
from idcodeformer.restoration.engine import execution, strips
from idcodeformer.restoration.engine.execution import ModuleEngine, accelerate, choose_precision
from idcodeformer.runtime import winograd
from training.stages.losses import IdentityLoss

TINY = CodeFormerConfig(
    img_size=32, nf=32, ch_mult=(1, 2, 2), attn_resolutions=(8,), codebook_size=32, emb_dim=16,
    dim_embd=32, dim_mlp=64, n_head=2, n_layers=1, connect_list=(8, 16, 32),
)  # fmt: skip
ODD = CodeFormerConfig(
    img_size=28, nf=12, ch_mult=(1, 3), attn_resolutions=(14, 28), codebook_size=20, emb_dim=8,
    dim_embd=16, dim_mlp=24, n_head=4, n_layers=2, res_blocks=1, connect_list=(28,),
)  # fmt: skip


def build(cfg: CodeFormerConfig) -> CodeFormer:
    """Weights away from their initial values: norms that scale and shift, codes far apart, positions not zero."""
    torch.manual_seed(3)
    net = CodeFormer(cfg).eval().requires_grad_(False)
    for name, p in net.named_parameters():
        if p.ndim == 1 or "embedding" in name or "position" in name:
            p.add_(0.3 * torch.randn_like(p))
    net.idx_pred_layer[1].weight.mul_(8)  # margins far above rounding, so that codes are comparable
    return net


def faces(cfg: CodeFormerConfig, n: int = 2) -> torch.Tensor:
    return torch.rand(n, 3, cfg.img_size, cfg.img_size, generator=torch.Generator().manual_seed(5)) * 2 - 1


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """dB, peak 2: the range of the network's images."""
    return float(-10 * ((a - b) / 2).square().mean().log10())


def skip_without_bf16() -> None:
    """Asked within a test, not where it is collected: without oneDNN's operators every CPU has it."""
    if not strips.cpu_has_bf16():
        pytest.skip("this CPU has no bf16")


LAYOUTS = ["planes", "planes, many strips", "planes, two threads", "rows", "rows, many strips", "rows, without oneDNN"]


@pytest.fixture(params=LAYOUTS)
def layout(request, monkeypatch):
    """The same sums however maps lie, whatever the strip height, whoever shares them, whichever operators torch has."""
    how = request.param
    if "planes" in how and not winograd.winograd_available():
        pytest.skip("this torch has no NNPACK")
    if "rows" in how:
        monkeypatch.setattr(execution, "winograd_available", lambda: False)
    if "many strips" in how:
        monkeypatch.setattr(strips, "STRIP_BYTES", 9000)
        monkeypatch.setattr(winograd, "STRIP_BYTES", 100_000)
    if "without oneDNN" in how:
        monkeypatch.setattr(strips, "_onednn_ops", lambda: None)
    before = torch.get_num_threads()
    torch.set_num_threads(2 if "two threads" in how else before)
    yield how
    torch.set_num_threads(before)


@pytest.mark.parametrize("cfg", [TINY, ODD], ids=["tiny", "odd"])
@pytest.mark.parametrize("w,adain", [(0.0, True), (0.7, False), (1.0, True)])
def test_fp32_equals_the_network(cfg, w, adain, layout):
    net, x = build(cfg), faces(cfg)
    image, logits, feat = net(x, w, adain)
    got = accelerate(net, "cpu", "fp32")(x, w, adain)
    torch.testing.assert_close(got[0], image, atol=4e-5, rtol=1e-5)
    torch.testing.assert_close(got[1], logits, atol=2e-4, rtol=1e-5)
    torch.testing.assert_close(got[2], feat, atol=2e-5, rtol=1e-5)
    assert torch.equal(got[1].argmax(2), logits.argmax(2))


@pytest.mark.skipif(not winograd.winograd_available(), reason="this torch has no NNPACK")
def test_convolutions_run_by_winograds_way(monkeypatch):
    """Every 3x3 convolution of stride 1 whose map is large enough, and no other."""
    shapes, real = set(), torch._nnpack_spatial_convolution

    def spy(x, *rest):
        shapes.add(tuple(x.shape))
        return real(x, *rest)

    monkeypatch.setattr(torch, "_nnpack_spatial_convolution", spy)
    accelerate(build(TINY), "cpu", "fp32")(faces(TINY), 0.7)
    assert {shape[3] for shape in shapes} == {32}  # 16 px and less do not pay
    assert {shape[1] for shape in shapes} == {32, 64}  # not the picture's three channels


def test_mixed_precision_rounds_the_image_only(layout):
    skip_without_bf16()
    net, x = build(TINY), faces(TINY)
    exact, mixed = accelerate(net, "cpu", "fp32"), accelerate(net, "cpu", "bf16")
    for ours, theirs in zip(mixed(x, 0.7, True)[1:], exact(x, 0.7, True)[1:]):
        assert torch.equal(ours, theirs)  # logits and encoder output: the same arithmetic
    image, rounded = exact(x, 0.7, True)[0], mixed(x, 0.7, True)[0]
    assert rounded.dtype == torch.float32
    assert 40 < psnr(rounded, image) < 90  # close, and really in lower precision


def test_each_face_its_own_w():
    net, x = build(TINY), faces(TINY, 3)
    engine = accelerate(net, "cpu", "fp32")
    state = engine.encode(x)
    together = engine.decode(state, torch.tensor([0.0, 0.4, 1.0]))
    for i, w in enumerate((0.0, 0.4, 1.0)):
        assert torch.allclose(together[i], engine.decode(state, w)[i], atol=1e-6)
    assert torch.allclose(engine.decode(state, torch.tensor(0.4)), engine.decode(state, 0.4), atol=1e-6)
    assert (together[1] - together[2]).abs().max() > 1e-3


def test_batch_does_not_change_a_face():
    net, x = build(TINY), faces(TINY, 3)
    engine = accelerate(net, "cpu", "fp32")
    image = engine(x, 0.5)[0]
    assert all(torch.equal(image[i : i + 1], engine(x[i : i + 1], 0.5)[0]) for i in range(3))


def test_w_zero_computes_no_fusion():
    net = build(TINY)
    for p in net.fuse_convs_dict.parameters():
        p.fill_(float("nan"))
    engine = accelerate(net, "cpu", "fp32")
    assert engine(faces(TINY), 0.0)[0].isfinite().all()
    assert engine(faces(TINY), 0.1)[0].isnan().any()


def test_states_pass_between_engine_and_network():
    net, x = build(TINY), faces(TINY)
    engine = accelerate(net, "cpu", "fp32")
    ours, theirs = net.decode(engine.encode(x), 0.6), engine.decode(net.encode(x), 0.6)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


def test_kept_results_are_not_overwritten():
    net, x = build(TINY), faces(TINY)
    engine = accelerate(net, "cpu", "fp32")
    state, image = engine.encode(x), engine(x, 0.5)[0]
    kept = (image, state.lq_feat, state.logits, state.quant, *state.features.values())
    before = [t.clone() for t in kept]
    engine(-x, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(before, kept))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_network_and_process_stay_as_they_were(precision):
    if precision == "bf16":
        skip_without_bf16()
    net, x = build(TINY), faces(TINY)
    before = copy.deepcopy(net.state_dict())
    strides = {k: v.stride() for k, v in net.state_dict().items()}
    image = net(x, 0.5)[0]
    engine = accelerate(net, "cpu", precision)
    engine(x, 0.5)
    engine.release()
    after = net.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], before[k]) and after[k].dtype == before[k].dtype for k in before)
    assert {k: v.stride() for k, v in after.items()} == strides
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert torch.equal(net(x, 0.5)[0], image)
    net.requires_grad_(True)(x, 0.5, code_selection="straight_through")[0].mean().backward()  # it still trains
    assert net.encoder.blocks[0].weight.grad.abs().sum() > 0


def test_scratch_settles():
    """Reused, not grown: after the second face no new buffer is made."""
    engine = accelerate(build(TINY), "cpu", "fp32")
    sizes = []
    for _ in range(4):
        engine(faces(TINY, 1), 0.5)
        sizes.append(engine.scratch_bytes)
    assert sizes[1] == sizes[2] == sizes[3] > 0
    engine.release()
    assert engine.scratch_bytes == 0
    assert engine(faces(TINY, 1), 0.5)[0].isfinite().all()


def test_a_failed_call_keeps_nothing():
    engine = accelerate(build(TINY), "cpu", "fp32")
    engine(faces(TINY), 0.5)
    state = engine.encode(faces(TINY))
    with pytest.raises(RuntimeError):
        engine.decode(dataclasses.replace(state, features={32: torch.zeros(2, 5, 32, 32)}), 0.5)
    assert engine.scratch_bytes == 0
    assert engine(faces(TINY), 0.5)[0].isfinite().all()


def test_strips_cover_every_row_once():
    limit = strips.STRIP_BYTES
    for height, row_bytes in ((1, 10), (7, limit), (512, limit // 9), (5, 3 * limit)):
        rows = [r for a, b in strips.strips(height, row_bytes) for r in range(a, b)]
        assert rows == list(range(height))


def test_moments_survive_a_large_mean():
    """A single-pass variance in float32 would lose all digits here."""
    rows = torch.randn(40, 16, 8, generator=torch.Generator().manual_seed(1)) + 3000
    moments = strips.Moments()
    for a in range(0, 40, 10):
        moments.add(rows[a : a + 10])
    norm = torch.nn.GroupNorm(4, 8, eps=1e-6)
    scale, shift = moments.affine(norm)
    want = torch.nn.functional.group_norm(rows.double().permute(2, 0, 1)[None], 4, eps=1e-6)[0].permute(1, 2, 0)
    assert (rows.double() * scale.double() + shift.double() - want).abs().max() < 2e-3


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_gpu_engine_stays_on_the_device(precision):
    """Shapes, dtypes and devices of the CUDA path, without a GPU; a host synchronisation would raise here."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        with torch.device("cuda"):
            net = CodeFormer(TINY).eval().requires_grad_(False)
            x, each = torch.empty(5, 3, 32, 32), torch.empty(5)
        engine = ModuleEngine(net, torch.device("cuda"), precision)
        state = engine.encode(x)
        assert state.logits.dtype == torch.float32 and state.logits.device.type == "cuda"
        for w in (0.0, 0.5, each):
            image = engine.decode(state, w, True)
            assert (image.shape, image.dtype, image.device.type) == ((5, 3, 32, 32), torch.float32, "cuda")


def test_gpu_engine_equals_the_network_and_shares_its_weights():
    net, x = build(TINY), faces(TINY)
    w = torch.tensor([0.0, 0.8])
    exact, mixed = (ModuleEngine(net, torch.device("cpu"), p) for p in ("fp32", "bf16"))
    for ours, theirs in zip(exact(x, w, True), net(x, w, True)):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-5)
    assert 40 < psnr(mixed(x, w, True)[0], net(x, w, True)[0]) < 90
    state = exact._network.state_dict()
    assert all(state[name].data_ptr() == tensor.data_ptr() for name, tensor in net.state_dict().items())


def test_tf32_is_a_choice_for_the_length_of_a_call():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    seen = []
    for allowed in (False, True):
        engine = ModuleEngine(build(TINY), torch.device("cpu"), "fp32", tf32=allowed)
        real = engine._network.encode
        engine._network.encode = lambda x, real=real: (seen.append(torch.backends.cudnn.allow_tf32), real(x))[1]
        engine.encode(faces(TINY))
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before
    assert seen == [False, True]


def test_recognisers_run_without_tf32():
    seen = []

    class Looks(torch.nn.Module):
        embedding_dim = 2

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
            return x.flatten(1)[:, :2] * self.weight

    torch.backends.cudnn.allow_tf32 = True
    IdentityRecogniser(Looks(), "looks", "cpu")(torch.rand(2, 3, 64, 64))
    IdentityLoss([Looks()])(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64))
    assert len(seen) == 3 and set(seen) == {(False, False)} and torch.backends.cudnn.allow_tf32


def test_a_mixed_restorer_has_an_exact_one():
    restorer = CodeFormerRestorer(build(TINY), "cpu", "fp32")
    assert restorer.exact() is None
    restorer.precision = "fp16"  # as on a GPU; the weights of ``in_place`` would be half themselves
    with torch.no_grad():
        restorer.network.generator.half()
    exact = restorer.exact()
    assert exact is restorer.exact() and exact.precision == "fp32"
    assert {p.dtype for p in exact.network.parameters()} == {torch.float32}
    assert exact(faces(TINY).add(1).div(2).clamp(0, 1)).isfinite().all()


def test_plain_yardstick_is_the_same_network():
    """What the benchmark compares with computes what the network computes."""
    from benchmarks.plain import plain_forward

    net, x = build(TINY), faces(TINY)
    for w, use_adain in ((0.0, False), (0.6, True)):
        for ours, theirs in zip(plain_forward(net, x, w, use_adain), net(x, w, use_adain)):
            torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("native", [False, True])
def test_bf16_is_refused_where_the_cpu_lacks_it(monkeypatch, native):
    """oneDNN's own error names an operator and no remedy."""
    monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: native)
    if native or strips._onednn_ops() is None:
        assert choose_precision("cpu", "bf16") == "bf16"
    else:
        with pytest.raises(BadOption, match="AVX-512.*use auto or fp32"):
            accelerate(build(TINY), "cpu", "bf16")
    assert choose_precision("cuda", "bf16") == "bf16"


def test_bad_requests_are_refused():
    with pytest.raises(BadOption, match="int3"):
        choose_precision("cpu", "int3")
    with pytest.raises(BadOption, match="fp16"):
        choose_precision("cpu", "fp16")
    assert choose_precision("cpu", "auto") == "fp32"
    if not torch.cuda.is_available():
        with pytest.raises(NoDevice, match="cpu"):
            accelerate(build(TINY), "cuda")


class ChangedOps:
    """torch's private operators after a change: another signature, or other sums."""

    def __init__(self, fault: str):
        self.fault, self.real = fault, torch.ops.mkldnn
        self._convolution_pointwise_ = self.real._convolution_pointwise_

    def _reorder_convolution_weight(self, *args):
        if self.fault == "signature":
            raise TypeError("expected at most 5 arguments")
        return self.real._reorder_convolution_weight(*args)

    def _convolution_pointwise(self, *args):
        return self.real._convolution_pointwise(*args) * (1.01 if self.fault == "sums" else 1)


@pytest.mark.parametrize(("fault", "trusted"), [("signature", False), ("sums", False), ("none", True)])
def test_private_operators_are_tried_before_they_are_trusted(fault, trusted):
    if strips._onednn_ops() is None:
        pytest.skip("this torch has no oneDNN operators")
    assert strips._agrees(ChangedOps(fault)) is trusted


def test_scratch_taken_by_another_thread_between_look_and_pop_is_made_anew():
    """What a thread meets that looked while one was idle: the list says yes and is empty."""

    class Raced(list):
        def __bool__(self):
            return True

    net = build(TINY)
    engine = accelerate(net, "cpu", "fp32")
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    expected = engine(x, 0.5)[0]
    engine._idle = Raced()
    assert torch.equal(engine(x, 0.5)[0], expected)
