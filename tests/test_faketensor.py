"""No host synchronisation between crops and pasted picture, shown without a GPU.

Under FakeTensorMode tensors "on cuda" have shapes but no values: whatever asks for a value fails. A second mode refuses
what FakeTensorMode lets pass although it makes the host wait on a GPU: copies between devices.
"""
from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from idcodeformer.compositing.blend import paste_planned
from idcodeformer.compositing.parsing import soft_mask
from idcodeformer.compositing.plan import plan_paste
from idcodeformer.networks.codeformer import CodeFormer, CodeFormerConfig
from idcodeformer.restoration.codeformer import CodeFormerRestorer
from idcodeformer.restoration.tone import match_gray
from idcodeformer.types import Crops, RestoreOptions

TINY = CodeFormerConfig(
    img_size=32, nf=16, ch_mult=(1, 2, 2), attn_resolutions=(8,), codebook_size=32, emb_dim=16,
    dim_embd=32, dim_mlp=64, n_head=2, n_layers=1, connect_list=(16, 32),
)  # fmt: skip
WAITING = ("_local_scalar_dense", "item", "equal", "nonzero", "masked_select", "_unique2", "is_nonzero")


class Wait(AssertionError):
    """Something made the host wait for the device."""


class NoWaiting(TorchDispatchMode):
    """Refuses every operation that synchronises host and device; counts the others."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        out = function(*args, **(kwargs or {}))
        devices = {t.device.type for t in tree_flatten((args, kwargs, out))[0] if isinstance(t, Tensor) and t.ndim}
        indexed_by_bool = name == "index" and any(
            isinstance(t, Tensor) and t.dtype == torch.bool for t in tree_flatten(args[1])[0]
        )
        if name in WAITING or indexed_by_bool or len(devices) > 1:
            raise Wait(f"{function} on {sorted(devices)}")
        self.operations += 1
        return out


@pytest.fixture
def cuda(monkeypatch):
    """A CUDA device as far as the package asks for one; torch itself is not deceived."""
    monkeypatch.setattr("idcodeformer.restoration.codeformer.resolve_device", torch.device)
    monkeypatch.setattr("idcodeformer.restoration.engine.execution.resolve_device", torch.device)
    # The network is there already, and fake parameters cannot be moved.
    monkeypatch.setattr(CodeFormer, "to", lambda self, device: self)
    return torch.device("cuda", 0)


def made_up_crops(faces: int) -> Crops:
    """Host data: matrices of faces in two 200x300 pictures, some of which overlap."""
    matrices = torch.tensor([[[0.5, 0.05, -10.0 - 12 * i], [-0.05, 0.5, -20.0 + 3 * i]] for i in range(faces)])
    return Crops(torch.zeros(faces, 3, 32, 32), matrices, torch.arange(faces) % 2, ((200, 300), (200, 300)))


def hot_path(device: torch.device, crops: Crops, options: RestoreOptions, **more) -> tuple[Tensor, ...]:
    plan = plan_paste(crops, options.upscale)
    count = len(crops)
    with FakeTensorMode():
        with device:
            network = CodeFormer(TINY)
        restorer = CodeFormerRestorer(network, device, "bf16")
        pixels = torch.empty(count, 3, 32, 32, device=device)
        images = [torch.empty(3, 200, 300, device=device) for _ in range(2)]
        labels = torch.empty(count, 32, 32, dtype=torch.uint8, device=device)
        masks = [torch.empty(200, 300, device=device), None]
        with NoWaiting() as mode:
            restored = match_gray(restorer(pixels, options), pixels, options.gray)
            parsed = soft_mask(labels, side=16)
            out, shares = paste_planned(images, plan, pixels, restored, options, parsed, masks, **more)
        assert all(t.device == device for t in (*out, *shares, restored))
        assert mode.operations > 100
    return out


@pytest.mark.parametrize("upscale", [1.0, 2.0, 1.37, 0.5])
def test_from_crops_to_picture_nothing_waits(cuda, upscale):
    out = hot_path(cuda, made_up_crops(8), RestoreOptions(upscale=upscale, batch_size=4))
    assert tuple(out[0].shape) == (3, round(200 * upscale), round(300 * upscale))


def test_with_strength_upscaler_and_forced_gray(cuda):
    def upscaler(pixels: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(pixels, scale_factor=2.0)

    options = RestoreOptions(upscale=2, batch_size=3, strength=0.5, gray="force", face_upsample=True)
    hot_path(cuda, made_up_crops(5), options, background=upscaler)


def test_waiting_would_be_seen(cuda):
    """The proof can fail: each of these is what a careless step would do per face."""
    careless = (
        lambda x: x.sum().item(),
        lambda x: x.cpu(),
        lambda x: x[0, 0].tolist(),
        lambda x: x[x > 0.5],
        lambda x: x.nonzero(),
        lambda x: bool((x > 0).any()),
        lambda x: x * torch.tensor([1.0, 2.0], device="cpu").to(x.device),
    )
    with FakeTensorMode():
        x = torch.empty(2, 2, device=cuda)
        for step in careless:
            with pytest.raises((Wait, DataDependentOutputException, DynamicOutputShapeException)):
                with NoWaiting():
                    step(x)
