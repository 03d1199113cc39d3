"""LPIPS and st-LPIPS from weight files: the right network, the right order of layers, one normalisation."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from idcodeformer.errors import MissingWeights, UnsupportedWeights
from training.stages.perceptual import STLPIPS, LPIPSAlex, LPIPSVgg, load_perceptual

ALEX = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
HEADS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def random_conv(cout: int, cin: int, side: int) -> tuple[Tensor, Tensor]:
    return torch.randn(cout, cin, side, side) * (2 / (cin * side * side)) ** 0.5, torch.randn(cout) * 0.1


def alex_backbone(prefix: str = "features.{}") -> dict[str, Tensor]:
    state = {}
    for number, shape in ALEX.items():
        key = prefix.format(number)
        state[f"{key}.weight"], state[f"{key}.bias"] = random_conv(*shape)
    return state


def heads(kind: str) -> dict[str, Tensor]:
    return {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(HEADS[kind])}


def stlpips_state() -> dict[str, Tensor]:
    """Keys of the published st-LPIPS file."""
    torch.manual_seed(0)
    places = {0: "net.slice1.0", 3: "net.slice2.5", 6: "net.slice3.9", 8: "net.slice4.11", 10: "net.slice5.13"}
    plain = alex_backbone()
    state = {f"{places[n]}.{k}": plain[f"features.{n}.{k}"] for n in ALEX for k in ("weight", "bias")}
    for name, channels in (("net.slice1.1", 64), ("net.slice2.4", 64), ("net.slice3.8", 192)):
        state[f"{name}.filt"] = torch.ones(channels, 1, 3, 3) / 9
    return {**state, **heads("alex")}


def write(path: Path, state: dict[str, Tensor]) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, str(path))
    else:
        torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def stlpips(tmp_path_factory: pytest.TempPathFactory) -> tuple[STLPIPS, dict[str, Tensor]]:
    state = stlpips_state()
    net = load_perceptual(write(tmp_path_factory.mktemp("w") / "st.safetensors", state))
    assert isinstance(net, STLPIPS)
    return net, state


def pictures(count: int = 2, side: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    a = torch.rand(count, 3, side, side, generator=generator) * 2 - 1
    return a, (a + 0.3 * torch.randn(a.shape, generator=generator)).clamp(-1, 1)


def as_published(state: dict[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
    """st-LPIPS written out layer by layer: blurred before the first ReLU, then before two convolutions."""
    taps = torch.tensor([1.0, 2.0, 1.0])
    kernel = (taps[:, None] * taps / 16).expand(1, 1, 3, 3)

    def blur(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        out = F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect").reshape(n * c, 1, h + 4, w + 4), kernel, stride=2)
        return out.view(n, c, *out.shape[-2:])

    def conv(x: Tensor, name: str, padding: int) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=padding)

    def maps(x: Tensor) -> list[Tensor]:
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        x = ((x + 1) / 2 - mean) / std
        out = [F.relu(blur(conv(x, "net.slice1.0", 2)))]
        out.append(F.relu(conv(blur(F.max_pool2d(out[-1], 3, 1)), "net.slice2.5", 2)))
        out.append(F.relu(conv(blur(F.max_pool2d(out[-1], 3, 1)), "net.slice3.9", 1)))
        out.append(F.relu(conv(out[-1], "net.slice4.11", 1)))
        return [*out, F.relu(conv(out[-1], "net.slice5.13", 1))]

    total = torch.zeros(len(a))
    for i, (x, y) in enumerate(zip(maps(a), maps(b), strict=True)):
        difference = (F.normalize(x) - F.normalize(y)).square()
        total += (difference * state[f"lin{i}.model.1.weight"]).sum(1).mean((1, 2))
    return total


def test_stlpips_is_the_published_network_and_normalises_once(stlpips) -> None:
    net, state = stlpips
    a, b = pictures()
    torch.testing.assert_close(net(a, b), as_published(state, a, b), rtol=1e-4, atol=1e-6)


def test_reference_features_stand_in_for_the_target(stlpips) -> None:
    net, _ = stlpips
    a, b = pictures()
    kept = net.reference_features(b.requires_grad_())
    assert not any(f.requires_grad for f in kept)
    torch.testing.assert_close(net(a, kept), net(a, b))


def test_zero_for_equal_images_and_symmetric(stlpips) -> None:
    net, _ = stlpips
    a, b = pictures()
    assert net(a, a).abs().max() == 0
    torch.testing.assert_close(net(a, b), net(b, a))
    assert (net(a, b) > 0).all()


def test_frozen_but_differentiable_in_the_image(stlpips) -> None:
    net, _ = stlpips
    net.train()
    assert not net.training and not any(m.training for m in net.modules())
    assert not any(p.requires_grad for p in net.parameters())
    flat = torch.zeros(1, 3, 64, 64, requires_grad=True)  # a flat picture has dead channels: no division by zero
    net(flat, pictures(1)[1]).sum().backward()
    assert flat.grad is not None and flat.grad.isfinite().all() and flat.grad.abs().sum() > 0


def test_lpips_alex_from_backbone_and_heads(tmp_path: Path) -> None:
    torch.manual_seed(1)
    backbone, linear = alex_backbone(), heads("alex")
    net = load_perceptual(write(tmp_path / "alex.pth", backbone), write(tmp_path / "lin.pth", linear))
    assert isinstance(net, LPIPSAlex) and net.label.startswith("LPIPS")
    x = pictures()[0]
    first = F.conv2d((x - net.shift) / net.scale, backbone["features.0.weight"], backbone["features.0.bias"], 4, 2)
    torch.testing.assert_close(net.features(x)[0], F.normalize(F.relu(first)), rtol=1e-4, atol=1e-6)
    assert [f.shape[1] for f in net.features(x)] == list(HEADS["alex"])


def test_lpips_vgg_takes_thirteen_convolutions_in_order(tmp_path: Path) -> None:
    widths = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    numbers = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    state, channels = heads("vgg"), 3
    for number, width in zip(numbers, widths, strict=True):
        state[f"features.{number}.weight"] = torch.full((width, channels, 3, 3), number / 1000.0)
        state[f"features.{number}.bias"] = torch.zeros(width)
        channels = width
    net = load_perceptual(write(tmp_path / "vgg.safetensors", state))
    assert isinstance(net, LPIPSVgg)
    values = [float(c.weight.detach()[0, 0, 0, 0]) * 1000 for c in net.convolutions()]
    assert [round(v) for v in values] == list(numbers)
    maps = net.features(pictures()[0][..., :64, :64])
    assert [tuple(each.shape[1:]) for each in maps] == [(w, 64 >> n, 64 >> n) for n, w in enumerate(HEADS["vgg"])]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    backbone = write(tmp_path / "alex.pth", alex_backbone())
    with pytest.raises(MissingWeights, match="linear heads"):
        load_perceptual(backbone)
    with pytest.raises(UnsupportedWeights, match="different networks"):
        load_perceptual(backbone, write(tmp_path / "vgg_lin.pth", heads("vgg")))
    with pytest.raises(UnsupportedWeights, match="AlexNet"):
        load_perceptual(write(tmp_path / "other.pth", {"conv.weight": torch.zeros(3, 3, 1, 1)}))
    with pytest.raises(MissingWeights, match="not there"):
        load_perceptual(tmp_path / "nothing.pth")


def test_too_small_an_image_is_said(stlpips) -> None:
    with pytest.raises(ValueError, match="16 px"):
        stlpips[0](torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
