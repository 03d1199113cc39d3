"""Winograd convolutions: the sums of F.conv2d, with gradients, in threads, and only where they can be trusted."""
from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from idcodeformer.networks.codeformer import CodeFormer, CodeFormerConfig
from idcodeformer.restoration.engine import execution, planes
from idcodeformer.restoration.engine.execution import StripEngine
from idcodeformer.runtime import winograd, workers
from idcodeformer.runtime.winograd import Winograd, winograd_available, winograd_strips
from idcodeformer.runtime.workers import Workers

needs_nnpack = pytest.mark.skipif(not winograd_available(), reason="this torch has no NNPACK")


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def counted(monkeypatch):
    """How often the private operator ran."""
    calls, real = [], torch._nnpack_spatial_convolution
    monkeypatch.setattr(torch, "_nnpack_spatial_convolution", lambda *a: (calls.append(a[0].shape), real(*a))[1])
    return calls


@needs_nnpack
@pytest.mark.parametrize("strip_bytes", [1 << 16, 16 << 20], ids=["many strips", "one strip"])
@pytest.mark.parametrize("pad", [(1, 1), (0, 0), (0, 2), (2, 1)])
def test_a_foreign_module_computes_the_same_sums(pad, strip_bytes, threads, counted, monkeypatch):
    monkeypatch.setattr(winograd, "STRIP_BYTES", strip_bytes)
    conv = nn.Conv2d(16, 12, 3, padding=pad).requires_grad_(False)
    x = values(3, 16, 41, 30)
    expected = conv(x)
    with Winograd():
        found = conv(x)
    assert counted and found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-4


@needs_nnpack
def test_gradients_are_those_of_the_plain_convolution(counted):
    conv, x, weights = nn.Conv2d(8, 10, 3, padding=1), values(2, 8, 30, 27), values(2, 10, 30, 27, seed=1)

    def gradients() -> list[torch.Tensor]:
        leaf = x.clone().requires_grad_(True)
        return list(torch.autograd.grad((conv(leaf) * weights).sum(), [leaf, conv.weight, conv.bias]))

    expected = gradients()
    with Winograd():
        found = gradients()
    assert len(counted) >= 2  # forward and the gradient to the input
    for mine, wanted in zip(found, expected):
        assert (mine - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()) * 10)


@needs_nnpack
def test_everything_else_is_left_to_torch(counted):
    x = values(1, 16, 32, 32)
    weight = values(16, 16, 3, 3)
    mode = Winograd()
    cases = [
        (x, weight, None, 2, 1),
        (x, weight, None, 1, 1, 2),
        (x, values(16, 4, 3, 3), None, 1, 1, 1, 4),
        (x, values(16, 16, 5, 5), None, 1, 2),
        (x[:, :3], values(16, 3, 3, 3), None, 1, 1),
        (x[:, :, :8, :8], weight, None, 1, 1),
        (x.double(), weight.double(), None, 1, 1),
        (x, weight, None, 1, "same"),
    ]
    for case in cases:
        with mode:
            found = F.conv2d(*case)
        assert torch.equal(found, F.conv2d(*case))
    assert not counted
    with torch.autocast("cpu", torch.bfloat16), mode:
        assert F.conv2d(x, weight, None, 1, 1).dtype == torch.bfloat16
    F.conv2d(x, weight, None, 1, 1)
    assert not counted  # nothing outside of the block


@needs_nnpack
def test_autograd_may_keep_what_comes_out():
    conv, head = nn.Conv2d(8, 8, 3, padding=1).requires_grad_(False), nn.Conv2d(8, 1, 1)
    with Winograd():
        head(conv(values(1, 8, 32, 32))).sum().backward()
    assert head.weight.grad.abs().sum() > 0


@needs_nnpack
def test_two_threads_share_one_mode():
    """A parser serves several requests at once."""
    conv, mode = nn.Conv2d(16, 16, 3, padding=1).requires_grad_(False), Winograd()
    pictures = [values(1, 16, 40, 40, seed=seed) for seed in range(2)]
    found: dict[int, list[torch.Tensor]] = {0: [], 1: []}

    def serve(which: int) -> None:
        for _ in range(8):
            with mode:
                found[which].append(conv(pictures[which]))

    threads = [threading.Thread(target=serve, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for which, x in enumerate(pictures):
        assert len(found[which]) == 8
        assert all((image - conv(x)).abs().max() < 1e-4 for image in found[which])


def test_strips_are_whole_tiles_and_cover_every_row_once():
    for height, width, channels in ((1, 1, 1), (28, 28, 12), (512, 512, 256), (130, 64, 4096), (6, 4000, 4000)):
        cuts = winograd_strips(height, width, channels)
        assert [row for a, b in cuts for row in range(a, b)] == list(range(height))
        assert all(a % 6 == 0 for a, _ in cuts)


@pytest.mark.parametrize(
    ("operator", "trusted"),
    [
        (lambda x, w, b, pad, stride: F.conv2d(x, w, b, stride, pad), True),
        (lambda x, w, b, pad, stride: F.conv2d(x, w, b, stride, pad) * 1.01, False),
        (lambda x, w, b, pad, stride: F.conv2d(x, w, b, stride, [1, 1]), False),
        (lambda x, w, b, pad, stride: F.conv2d(x, w, b, stride, pad) * float("nan"), False),
    ],
    ids=["right", "off", "other padding", "no numbers"],
)
def test_the_operator_is_compared_before_it_is_trusted(operator, trusted):
    assert winograd._agrees(operator) is trusted


@pytest.mark.parametrize("fault", ["missing", "signature", "not there"])
def test_a_torch_without_it_runs_rows(fault, monkeypatch):
    if fault == "missing":
        monkeypatch.delattr(torch, "_nnpack_spatial_convolution")
    elif fault == "signature":
        monkeypatch.setattr(torch, "_nnpack_spatial_convolution", lambda x: x)
    else:
        off = SimpleNamespace(is_available=lambda: False)
        monkeypatch.setattr(torch.backends, "nnpack", off, raising=False)  # torch 2.1 has none
    monkeypatch.setattr(winograd, "winograd_available", winograd.winograd_available.__wrapped__)
    monkeypatch.setattr(execution, "winograd_available", winograd.winograd_available)
    assert winograd.winograd_available() is False
    config = CodeFormerConfig(
        img_size=32, nf=32, ch_mult=(1, 2), attn_resolutions=(16,), codebook_size=16, emb_dim=16, dim_embd=32,
        dim_mlp=32, n_head=2, n_layers=1, connect_list=(32,),
    )  # fmt: skip
    network = CodeFormer(config).eval().requires_grad_(False)
    engine = StripEngine(network, torch.device("cpu"), "fp32")
    assert not engine._generator.planes
    x = values(1, 3, 32, 32)
    torch.testing.assert_close(engine(x, 0.5)[0], network(x, 0.5)[0], atol=2e-5, rtol=1e-5)
    conv = nn.Conv2d(16, 16, 3).requires_grad_(False)
    with Winograd():
        found = conv(values(1, 16, 32, 32))
    assert torch.equal(found, conv(values(1, 16, 32, 32)))


def test_workers_use_one_core_each_and_leave_the_setting_alone(threads):
    seen = set()
    gate = threading.Barrier(threads, timeout=20)

    def look(_: int) -> int:
        gate.wait()  # only as many at once as there are threads: all must be there
        seen.add(threading.get_ident())
        return torch.get_num_threads()

    crew = Workers()
    if crew.count != threads:
        pytest.skip("torch's threads cannot be held to one core here")
    assert crew.run(look, range(threads)) == [1] * threads
    assert len(seen) == threads and threading.get_ident() not in seen
    assert torch.get_num_threads() == threads
    fresh: list[int] = []
    other = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert fresh == [threads]  # a later thread of the process has what was set for it


def test_one_worker_where_torch_cannot_be_held_to_one_core(monkeypatch):
    monkeypatch.setattr(workers, "_use_one_core", lambda: False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        crew = Workers()
        assert crew.count == 1 and crew.run(lambda i: i * i, range(5)) == [0, 1, 4, 9, 16]
    finally:
        torch.set_num_threads(before)


def test_an_error_comes_out_once_all_are_through():
    done = []

    def work(i: int) -> None:
        if i == 0:
            raise ValueError("first")
        done.append(i)

    with pytest.raises(ValueError, match="first"):
        Workers().run(work, range(4))
    assert done == [1, 2, 3]


def test_threads_end_with_the_workers():
    crew = Workers()
    crew.run(lambda i: i, range(3))
    mine = set(crew._pool._threads)
    assert all(thread.is_alive() for thread in mine)
    del crew
    for thread in mine:
        thread.join(timeout=20)
        assert not thread.is_alive()


def test_moments_of_planes_survive_a_large_mean_and_any_order():
    """The mean square less the mean's square would lose all digits of the second half of the channels."""
    x = values(8, 40, 16) + torch.tensor([0.1] * 4 + [400.0] * 4)[:, None, None]
    parts = [(row, channel) for row in range(0, 40, 10) for channel in (0, 4)]
    results = []
    for order in (parts, parts[::-1]):
        moments = planes.PlaneMoments()
        for row, channel in order:
            moments.add(x[channel : channel + 4, row : row + 10], row, channel)
        results.append(moments.merged())
    (mean, var), again = results
    assert torch.equal(mean, again[0]) and torch.equal(var, again[1])
    exact = x.double()
    assert (mean - exact.mean((1, 2))).abs().max() < 1e-3
    assert ((var / exact.var((1, 2), correction=0)) - 1).abs().max() < 1e-3
