"""Devices without float64 (Apple's MPS, Intel Arc): nothing is turned into it before it is on the CPU."""
from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from idcodeformer.compositing.blend import paste
from idcodeformer.errors import BadOption
from idcodeformer.geometry.alignment import align
from idcodeformer.geometry.resizing import resize
from idcodeformer.identity.recogniser import IdentityRecogniser
from idcodeformer.networks.arcface import IResNet, IResNetConfig
from idcodeformer.runtime import memory
from idcodeformer.types import Crops, Face, RestoreOptions, empty_crops


class Elsewhere(torch.Tensor):
    """A tensor that stands for one on a device without float64: only ``cpu`` brings it home."""


class NoFloat64(TorchFunctionMode):
    """Raises as MPS does where a tensor from elsewhere becomes float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        away = args and isinstance(args[0], Elsewhere)
        name = getattr(func, "__name__", "")
        if away and (name == "double" or torch.float64 in (*args[1:], *kwargs.values())):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it.")
        result = func(*args, **kwargs)
        return result.as_subclass(torch.Tensor) if away and name == "cpu" else result


class NoAntiAlias(TorchFunctionMode):
    """Raises as MPS does, without PYTORCH_ENABLE_MPS_FALLBACK, where a tensor from elsewhere is resized so."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        there = args and isinstance(args[0], Elsewhere)
        if there and func is F.interpolate and kwargs.get("antialias"):
            raise NotImplementedError("The operator 'aten::_upsample_bilinear2d_aa.out' is not implemented for MPS.")
        if there and getattr(func, "__self__", None) is torch.Tensor.device:
            return torch.device("mps")
        if func is torch.Tensor.to and args[1] == torch.device("mps"):
            return args[0].as_subclass(Elsewhere)
        result = func(*args, **kwargs)
        return result.as_subclass(torch.Tensor) if there and getattr(func, "__name__", "") == "cpu" else result


def away(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_subclass(Elsewhere)


@pytest.fixture
def face() -> Face:
    points = torch.tensor([[24.0, 30.0], [40.0, 30.0], [32.0, 39.0], [25.0, 47.0], [39.0, 47.0]])
    return Face(torch.tensor([16.0, 16.0, 48.0, 56.0]), 0.99, points)


def test_the_stand_in_refuses_what_it_should() -> None:
    with NoFloat64():
        with pytest.raises(TypeError):
            away(torch.ones(2)).double()
        with pytest.raises(TypeError):
            away(torch.ones(2)).to(torch.float64)
        assert away(torch.ones(2)).cpu().double().dtype == torch.float64


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_what_a_device_cannot_resize_the_cpu_does(mode) -> None:
    pixels = torch.rand(1, 3, 30, 40)
    with NoAntiAlias():
        with pytest.raises(NotImplementedError):
            F.interpolate(away(pixels), (10, 12), mode=mode, antialias=True)
        found = resize(away(pixels), (10, 12), mode)
    assert isinstance(found, Elsewhere)
    assert torch.equal(found.as_subclass(torch.Tensor), F.interpolate(pixels, (10, 12), mode=mode, antialias=True))


def test_a_picture_without_a_face_is_pasted(face) -> None:
    image = torch.rand(1, 3, 64, 64)
    crops = empty_crops(32, ((64, 64),))
    crops = Crops(crops.pixels, away(crops.matrices), crops.image_index, crops.image_sizes)
    with NoFloat64():
        pasted, masks = paste(image, crops, crops.pixels, RestoreOptions())
    assert torch.equal(pasted[0].as_subclass(torch.Tensor), image[0]) and float(masks[0].sum()) == 0


def test_crops_whose_matrices_lie_on_the_device_are_pasted(face) -> None:
    """What align returns to a caller of the library on such a device."""
    image = torch.rand(1, 3, 64, 64)
    crops = align(image, [(face,)], 32)
    there = Crops(crops.pixels, away(crops.matrices), crops.image_index, crops.image_sizes)
    expected = paste(image, crops, 1 - crops.pixels, RestoreOptions(gray="off"))[0][0]
    with NoFloat64():
        pasted = paste(image, there, 1 - crops.pixels, RestoreOptions(gray="off"))[0][0]
    assert torch.equal(pasted.as_subclass(torch.Tensor), expected)


def test_landmarks_on_the_device_are_aligned_and_embedded(face) -> None:
    image = torch.rand(1, 3, 64, 64)
    there = Face(face.box, face.score, away(face.landmarks))
    torch.manual_seed(5)
    eye = IdentityRecogniser(IResNet(IResNetConfig((1, 1, 1, 1), (8, 8, 8, 8), 16, 56)).eval(), "tiny", "cpu")
    expected = align(image, [(face,)], 32).matrices, eye.embed_faces(image, [(face,)]).vectors
    with NoFloat64():
        found = align(image, [(there,)], 32).matrices, eye.embed_faces(image, [(there,)]).vectors
    for mine, wanted in zip(found, expected):
        assert torch.equal(mine.as_subclass(torch.Tensor), wanted)


def test_a_card_is_not_credited_with_the_memory_of_the_system(monkeypatch) -> None:
    monkeypatch.setattr(memory, "_system_free", lambda: 1 << 40)
    monkeypatch.setattr(memory, "_container_free", lambda: 1 << 40)
    card = torch.device("xpu")
    backend = type("xpu", (), {"mem_get_info": staticmethod(lambda device: (3 << 30, 16 << 30))})
    monkeypatch.setattr(torch, "xpu", backend, raising=False)
    assert memory.free_bytes(card) == 3 << 30
    monkeypatch.setattr(torch, "xpu", object(), raising=False)
    assert memory.free_bytes(card) == memory._UNKNOWN_FREE
    assert memory.free_bytes(torch.device("cpu")) == 1 << 40


def test_an_mps_of_torch_before_2_5_is_sized_by_the_system(monkeypatch) -> None:
    monkeypatch.setattr(memory, "_system_free", lambda: 5 << 30)
    monkeypatch.setattr(memory, "_container_free", lambda: 1 << 40)
    monkeypatch.delattr(torch.mps, "recommended_max_memory", raising=False)
    assert memory.free_bytes(torch.device("mps")) == 5 << 30


def test_memory_is_given_back_on_the_device_that_ran_out(monkeypatch) -> None:
    emptied = []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: emptied.append("mps"))
    backend = type("xpu", (), {"is_available": staticmethod(lambda: True),
                               "empty_cache": staticmethod(lambda: emptied.append("xpu"))})  # fmt: skip
    monkeypatch.setattr(torch, "xpu", backend, raising=False)

    def step(start: int, stop: int) -> None:
        if stop - start > 1:
            raise RuntimeError("MPS backend out of memory")

    memory.in_batches(2, 2, step)
    assert emptied == ["mps", "xpu"]


def test_a_negative_batch_is_refused() -> None:
    with pytest.raises(BadOption, match="batch_size is -1"):
        RestoreOptions(batch_size=-1)
