"""Restoring: the network behind its door, batches, memory, and what is refused."""
from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from idcodeformer import load_restorer
from idcodeformer.errors import BadImage, BadOption, MissingWeights, NoDevice, OutOfMemory, UnsupportedWeights
from idcodeformer.geometry.face_shape import crop_distance
from idcodeformer.networks.codeformer import CodeFormer, CodeFormerConfig
from idcodeformer.networks.mobilefacenet import MobileFaceNet, MobileFaceNetConfig
from idcodeformer.restoration import bands, tone
from idcodeformer.restoration.codeformer import CodeFormerRestorer
from idcodeformer.restoration.tone import match_low_band, match_tone
from idcodeformer.runtime import memory
from idcodeformer.types import RestoreOptions
from idcodeformer.weights.loading import save

TINY = CodeFormerConfig(
    img_size=32, nf=16, ch_mult=(1, 2, 2), attn_resolutions=(8,), codebook_size=32, emb_dim=16,
    dim_embd=32, dim_mlp=64, n_head=2, n_layers=1, connect_list=(16, 32),
)  # fmt: skip


@pytest.fixture(scope="module")
def network() -> CodeFormer:
    torch.manual_seed(0)
    return CodeFormer(TINY).eval().requires_grad_(False)


@pytest.fixture
def restorer(network) -> CodeFormerRestorer:
    return CodeFormerRestorer(network, "cpu")


@pytest.fixture(scope="module")
def faces() -> torch.Tensor:
    return torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_is_the_network_with_its_ranges(network, restorer, faces):
    out = restorer(faces, RestoreOptions(w=0.6))
    expected = (network(faces * 2 - 1, w=0.6, adain=True)[0].clamp(-1, 1) + 1) / 2
    torch.testing.assert_close(out, expected, atol=2e-5, rtol=0)
    assert restorer.size == 32
    assert restorer.config is TINY
    assert isinstance(restorer.network, CodeFormer)


def test_adain_option_reaches_the_network(restorer, faces):
    assert not torch.allclose(restorer(faces), restorer(faces, RestoreOptions(adain=False)))


def test_input_is_kept_and_result_is_an_ordinary_tensor(restorer, faces):
    before = faces.clone()
    out = restorer(faces)
    assert torch.equal(before, faces)
    out.mul_(0.5)  # an inference tensor would refuse
    assert not out.is_inference()


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_batches_do_not_change_faces(restorer, faces, batch_size):
    out = restorer(faces, RestoreOptions(batch_size=batch_size))
    torch.testing.assert_close(out, restorer(faces), atol=1e-6, rtol=0)


def test_autocast_around_it_changes_no_code(restorer, faces):
    with torch.autocast("cpu", torch.bfloat16):
        inside = restorer(faces)
    assert torch.equal(inside, restorer(faces))


def test_no_face(restorer):
    assert restorer(torch.zeros(0, 3, 32, 32)).shape == (0, 3, 32, 32)


def test_each_face_its_own_fidelity(restorer, faces):
    w = torch.tensor([0.0, 0.3, 0.5, 0.9, 1.0])
    out = restorer(faces, RestoreOptions(batch_size=2), w=w)
    for i, value in enumerate(w.tolist()):
        alone = restorer(faces[i : i + 1], RestoreOptions(w=value))
        torch.testing.assert_close(out[i : i + 1], alone, atol=2e-6, rtol=0)


def test_sweep_encodes_once(restorer, faces, monkeypatch):
    encode, calls = restorer._engine.encode, []
    monkeypatch.setattr(restorer._engine, "encode", lambda x: calls.append(len(x)) or encode(x))
    out = restorer.sweep(faces, [0, 0.5, 1], RestoreOptions(batch_size=5))
    assert calls == [5]
    for i, w in enumerate([0, 0.5, 1]):
        torch.testing.assert_close(out[i], restorer(faces, RestoreOptions(w=w)), atol=2e-6, rtol=0)


def test_progress_after_each_batch_and_cancel(restorer, faces):
    seen = []
    restorer(faces, RestoreOptions(batch_size=2), lambda *step: seen.append(step))
    assert seen == [(2, 5, "restoring"), (4, 5, "restoring"), (5, 5, "restoring")]

    def cancel(done, total, what):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restorer(faces, RestoreOptions(batch_size=2), cancel)


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_and_goes_on(restorer, faces, monkeypatch, error):
    expected = restorer(faces)
    encode, sizes = restorer._engine.encode, []

    def narrow(x):
        sizes.append(len(x))
        if len(x) > 1:
            raise error
        return encode(x)

    monkeypatch.setattr(restorer._engine, "encode", narrow)
    out = restorer(faces, RestoreOptions(batch_size=4))
    assert sizes == [4, 2, 1, 1, 1, 1, 1]
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)


def test_not_even_one_face_fits(restorer, faces, monkeypatch):
    def full(x):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(restorer._engine, "encode", full)
    with pytest.raises(OutOfMemory, match="single face.*CUDA out of memory.*device cpu"):
        restorer(faces)


def test_other_errors_are_not_taken_for_it(restorer, faces, monkeypatch):
    def broken(x):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(restorer._engine, "encode", broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        restorer(faces)


def test_batch_follows_free_memory(monkeypatch):
    cuda, one = torch.device("cuda"), memory.bytes_per_face(CodeFormerConfig())
    for free, expected in ((40 * one, 8), (5 * one, 3), (one // 2, 1)):
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        assert memory.faces_per_batch(CodeFormerConfig(), cuda) == expected
    assert memory.faces_per_batch(CodeFormerConfig(), torch.device("cpu")) == 1
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1 << 40)
    assert memory.faces_per_batch(TINY, cuda) == 64


def test_free_memory_of_this_machine():
    assert 1 << 20 < memory.free_bytes(torch.device("cpu")) < 1 << 46


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (1, 3, 64, 64), (1, 3, 32, 31)])
def test_wrong_shape(restorer, shape):
    with pytest.raises(BadImage, match="size=32"):
        restorer(torch.zeros(shape))


def test_wrong_values(restorer, faces):
    bad = faces.clone()
    bad[0, 0, 0, 0] = float("nan")
    with pytest.raises(BadImage, match="NaN"):
        restorer(bad)
    with pytest.raises(BadImage, match="255"):
        restorer(faces * 255)
    with pytest.raises(BadImage, match="uint8"):
        restorer((faces * 255).to(torch.uint8))


def test_wrong_fidelity(restorer, faces):
    with pytest.raises(BadOption, match="between 0 and 1"):
        RestoreOptions(w=1.2)
    with pytest.raises(BadOption, match="between 0 and 1"):
        restorer.sweep(faces, [0.5, -0.1])
    with pytest.raises(BadOption, match="between 0 and 1"):
        restorer(faces, w=torch.tensor([0, 0, 0, 0, 1.5]))
    with pytest.raises(BadOption, match="between 0 and 1"):
        restorer(faces, w=torch.tensor([0, 0, 0, 0, float("nan")]))
    with pytest.raises(BadOption, match="one value per face"):
        restorer(faces, w=torch.tensor([0.5]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_no_cuda_when_asked_for(network):
    with pytest.raises(NoDevice, match="CUDA"):
        CodeFormerRestorer(network, "cuda")
    with pytest.raises(NoDevice, match="CUDA"):
        load_restorer("codeformer", device="cuda:1")


def test_unknown_device_and_precision(network):
    with pytest.raises(NoDevice, match="toaster"):
        CodeFormerRestorer(network, "toaster")
    with pytest.raises(BadOption, match="fp8"):
        CodeFormerRestorer(network, "cpu", "fp8")


# ---------------------------------------------------------------- loading


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_load_from_a_file(tmp_path, network, restorer, faces, suffix):
    path = tmp_path / f"tiny{suffix}"
    if suffix == ".pth":
        torch.save({"params_ema": network.state_dict()}, path)
    else:
        save(network, path, {})
    loaded = load_restorer(path, device="cpu")
    assert loaded.size == 32
    if suffix == ".safetensors":  # the number of heads is in no tensor's shape
        torch.testing.assert_close(loaded(faces), restorer(faces), atol=1e-6, rtol=0)


def test_load_refuses_other_networks(tmp_path):
    path = tmp_path / "recogniser.safetensors"
    save(copy.deepcopy(MobileFaceNet(MobileFaceNetConfig())), path, {})
    with pytest.raises(UnsupportedWeights, match="recogniser.safetensors"):
        load_restorer(path, device="cpu")


def test_load_missing_weights_says_where_they_go():
    with pytest.raises(MissingWeights, match="codeformer"):
        load_restorer("codeformer", device="cpu")


@pytest.mark.gpu
def test_on_cuda_as_on_cpu(network, restorer, faces):
    expected = restorer(faces)
    for precision, tolerance in (("fp32", 1e-3), ("auto", 0.05)):
        out = CodeFormerRestorer(copy.deepcopy(network), "cuda", precision)(faces.cuda()).cpu()
        torch.testing.assert_close(out, expected, atol=tolerance, rtol=0)


def cast(pixels: torch.Tensor, gain: tuple[float, float, float]) -> torch.Tensor:
    return (pixels * torch.tensor(gain)[:, None, None]).clamp(0, 1)


@pytest.mark.parametrize("gain", [(1, 0.4, 1), (0.4, 1, 0.5), (0.3, 0.5, 1), (1, 0.7, 0.4), (1.6, 1.6, 1.5), (1, 1, 1)])
def test_a_cast_of_the_network_is_taken_back(gain: tuple[float, float, float]) -> None:
    """Face and wall each keep their colour within 3 levels, whatever the network made of them."""
    inside = crop_distance(64) < 1
    skin, wall = torch.tensor([0.6, 0.45, 0.4])[:, None, None], torch.tensor([0.1, 0.3, 0.7])[:, None, None]
    pixels = cast(torch.where(inside, skin, wall), gain)[None]
    restored = torch.where(inside, skin + 0.1, wall * 0.5 + 0.25)[None].clamp(0, 1)
    out = match_tone(restored, pixels, RestoreOptions())
    core = crop_distance(64) < 0.8
    assert (out - pixels)[0][:, core].abs().mean(1).max() < 3 / 255
    assert (restored - pixels)[0][:, core].abs().mean(1).max() > 8 / 255
    assert torch.equal(match_tone(restored, pixels, RestoreOptions(colour="adain", gray="off")), restored)


def test_the_low_band_leaves_detail_and_its_choice_is_checked() -> None:
    detail = 0.1 * (torch.arange(64) % 4 < 2).float().expand(1, 3, 64, 64)
    out = match_low_band(0.3 + detail, torch.full((1, 3, 64, 64), 0.5))
    assert (out - out.mean() - (detail - detail.mean())).abs().max() < 0.01
    assert abs(float(out.mean()) - 0.5) < 0.005
    with pytest.raises(BadOption, match="colour is 'blue'"):
        RestoreOptions(colour="blue")


@pytest.mark.parametrize("side", [130, 256])
def test_the_low_band_is_that_of_a_full_gaussian(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(4)
    size = (side, side)
    pixels, cast = (F.interpolate(torch.rand(2, 3, n, n, generator=random), size, mode="bicubic") for n in (9, 4))
    restored = (0.7 * pixels + 0.3 * cast + 0.03 * torch.randn(pixels.shape, generator=random)).clamp(0, 1)
    quick = match_low_band(restored, pixels.clamp(0, 1))
    monkeypatch.setattr(tone, "_FEWEST", side)  # no blocks
    whole = match_low_band(restored, pixels.clamp(0, 1))
    assert (whole - restored).abs().mean() > 5 / 255 and not torch.equal(quick, whole)
    assert (quick - whole).abs().max() < 0.15 / 255


@pytest.mark.parametrize(("side", "block"), [(64, 8), (9, 3), (5, 2), (7, 1), (1, 4)])
def test_small_maps_are_enlarged_as_torch_does_it(side: int, block: int) -> None:
    planes = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(5))
    wanted = F.interpolate(planes, scale_factor=block, mode="bilinear")
    torch.testing.assert_close(bands.enlarged(planes, block), wanted, atol=1e-5, rtol=0)


def test_what_is_known_of_the_toning_is_not_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    gray = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(6)).expand(1, 3, 64, 64)
    colour = torch.rand(9, 3, 64, 64, generator=torch.Generator().manual_seed(7))
    pixels = torch.cat([colour, gray])
    told = tone.is_monochrome(pixels)
    assert told.tolist() == [False] * 9 + [True]
    wanted, looked = match_tone(pixels.flip(1), pixels, RestoreOptions()), []
    fit = tone._toning
    monkeypatch.setattr(tone, "_toning", lambda some: looked.append(len(some)) or fit(some))
    assert torch.equal(match_tone(pixels.flip(1), pixels, RestoreOptions(), told), wanted)
    assert looked == [2]  # the batch with the gray one
