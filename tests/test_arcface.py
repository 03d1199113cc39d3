"""The recogniser networks compute what their published weights expect."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from idcodeformer.networks.arcface import DEPTHS, IRSE50, IResNet, IResNetConfig, ResNet18Gray
from idcodeformer.networks.embedding_net import resize
from idcodeformer.networks.mobileface import MobileFace, MobileFaceConfig
from idcodeformer.networks.mobilefacenet import FoldedMobileFaceNet, MobileFaceNet, MobileFaceNetConfig

NARROW = dict(layers=(2, 1, 1, 1), widths=(4, 6, 8, 10), embedding_dim=5)
STAGES = ((2, 8, 5, 2), (4, 12, 1, 2), (2, 12, 6, 1), (4, 12, 1, 2), (2, 12, 2, 1))
MOBILE = MobileFaceNetConfig(STAGES, stem=8, head=16, embedding_dim=5)
NETS = {
    "IResNet": lambda: IResNet(IResNetConfig(**NARROW)),
    "IRSE50": lambda: IRSE50(IResNetConfig((1, 1, 1, 1), (16, 16, 32, 32), 5)),
    "ResNet18Gray": lambda: ResNet18Gray(IResNetConfig(**NARROW, input_size=128)),
    "MobileFaceNet": lambda: MobileFaceNet(MOBILE),
    "FoldedMobileFaceNet": lambda: FoldedMobileFaceNet(MOBILE),
    "MobileFace": lambda: MobileFace(MobileFaceConfig(8, (8, 8, 12, 12), embedding_dim=5)),
}
COARSEST = {"ResNet18Gray": 8, "MobileFace": 4}  # px of the last maps; 7 in the others


def randomised(net: nn.Module) -> nn.Module:
    """Norms and slopes away from their neutral start, so that a forgotten one shows."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, value in net.state_dict().items():
            if value.ndim == 1 and value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + (0.5 if "var" in key else 0.1))
    return net.eval()


def norm(state: dict, key: str, x: torch.Tensor) -> torch.Tensor:
    parts = [state[f"{key}.{p}"] for p in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(x, *parts)


@pytest.mark.parametrize("name", NETS)
def test_any_side_any_batch_and_a_gradient(name):
    net = randomised(NETS[name]())
    for side in (112, 64):
        x = (torch.rand(2, 3, side, side) * 2 - 1).requires_grad_()
        vectors = net(x)
        assert vectors.shape == (2, 5) == (2, net.embedding_dim)
        (gradient,) = torch.autograd.grad(vectors.square().sum(), x)
        assert gradient.abs().sum() > 0
    assert net(torch.zeros(0, 3, 112, 112)).shape == (0, 5)
    with pytest.raises(ValueError, match=r"\[N,3,S,S\]"):
        net(torch.zeros(1, 1, 112, 112))


@pytest.mark.parametrize(("name", "coarsest"), [(name, COARSEST.get(name, 7)) for name in NETS])
def test_levels_end_each_resolution(name, coarsest):
    net, sides = randomised(NETS[name]()), []
    for level in net.levels:
        level.register_forward_hook(lambda _module, _args, out: sides.append(out.shape[2]))
    net(torch.zeros(1, 3, 112, 112))
    assert sides[-1] == coarsest and len(sides) >= 3
    assert sides[1:] == [-(-side // 2) for side in sides[:-1]]


def test_iresnet_is_the_published_order_of_operations():
    net = randomised(IResNet(IResNetConfig(**NARROW)))
    s = net.state_dict()
    x = torch.rand(2, 3, 112, 112) * 2 - 1
    h = F.prelu(norm(s, "bn1", F.conv2d(x, s["conv1.weight"], padding=1)), s["prelu.weight"])
    for stage, units in enumerate(NARROW["layers"], 1):
        for unit in range(units):
            p, stride = f"layer{stage}.{unit}.", 2 if unit == 0 else 1
            y = F.conv2d(norm(s, p + "bn1", h), s[p + "conv1.weight"], padding=1)
            y = F.prelu(norm(s, p + "bn2", y), s[p + "prelu.weight"])
            y = norm(s, p + "bn3", F.conv2d(y, s[p + "conv2.weight"], stride=stride, padding=1))
            if unit == 0:
                h = norm(s, p + "downsample.1", F.conv2d(h, s[p + "downsample.0.weight"], stride=2))
            h = h + y
    flat = norm(s, "bn2", h).reshape(2, -1)
    expected = norm(s, "features", flat @ s["fc.weight"].t() + s["fc.bias"])
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)


def test_gray_resnet_is_the_published_order_of_operations():
    net = randomised(ResNet18Gray(IResNetConfig(**NARROW, input_size=128)))
    s = net.state_dict()
    x = torch.rand(1, 3, 128, 128) * 2 - 1
    h = 0.2989 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]
    h = F.prelu(norm(s, "bn1", F.conv2d(h, s["conv1.weight"], padding=1)), s["prelu.weight"])
    h = F.max_pool2d(h, 2, 2)
    for stage, units in enumerate(NARROW["layers"], 1):
        for unit in range(units):
            p, stride = f"layer{stage}.{unit}.", 2 if unit == 0 and stage > 1 else 1
            y = F.conv2d(norm(s, p + "bn0", h), s[p + "conv1.weight"], padding=1)
            y = F.prelu(norm(s, p + "bn1", y), s[p + "prelu.weight"])
            y = norm(s, p + "bn2", F.conv2d(y, s[p + "conv2.weight"], stride=stride, padding=1))
            if p + "downsample.0.weight" in s:
                h = norm(s, p + "downsample.1", F.conv2d(h, s[p + "downsample.0.weight"], stride=stride))
            h = F.prelu(y + h, s[p + "prelu.weight"])
    flat = norm(s, "bn4", h).reshape(1, -1)
    expected = norm(s, "bn5", flat @ s["fc5.weight"].t() + s["fc5.bias"])
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)


def test_ir_se50_is_facexlibs_network():
    arch = pytest.importorskip("facexlib.recognition.arcface_arch")
    theirs, ours = arch.Backbone(50, 0.6, "ir_se").eval(), IRSE50().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.rand(1, 3, 112, 112) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(F.normalize(ours(x)), theirs(x), rtol=1e-5, atol=1e-6)


def test_published_sizes():
    with torch.device("meta"):
        nets = {name: IResNet(IResNetConfig(DEPTHS[name])) for name in ("r50", "r100")}
        gray = ResNet18Gray()
    for name, published in (("r50", 174_680_546), ("r100", 261_223_796)):  # bytes of the ms1mv3 files
        tensors = sum(t.numel() * t.element_size() for t in nets[name].state_dict().values())
        assert 0 < published - tensors < 0.002 * published  # the rest is names and the archive's own
    assert len(nets["r100"].state_dict()) == 925 and len(gray.state_dict()) == 181
    assert gray.fc5.weight.shape == (512, 32768) and nets["r50"].fc.weight.shape == (512, 25088)


@pytest.mark.parametrize("folded", [False, True])
def test_mobilefacenet_is_fed_as_it_was_trained(folded):
    """(p - 127.5) / 128 of 0..255 pixels; the narrow variant sees columns 8 to 103."""
    make = FoldedMobileFaceNet if folded else MobileFaceNet
    for width in (112, 96):
        net = randomised(make(MobileFaceNetConfig(STAGES, 8, 16, 5, width)))
        pixels = torch.randint(0, 256, (1, 3, 112, 112)).float()
        left = (112 - width) // 2
        expected = net.embed((pixels[..., left : left + width] - 127.5) / 128)
        torch.testing.assert_close(net(pixels / 127.5 - 1), expected, rtol=1e-4, atol=1e-5)


def test_folding_batch_norms_gives_the_other_network():
    """Both MobileFaceNets are one network: at odd sides, TensorFlow's SAME padding is the symmetric one."""
    net = randomised(MobileFaceNet(MOBILE))
    block = net.blocks[1].conv
    folded = FoldedMobileFaceNet(MOBILE).blocks[1]
    with torch.no_grad():
        for target, conv, bn, act in (("pw", 0, 1, 2), ("dw", 3, 4, 5), ("pl", 6, 7, None)):
            part = getattr(folded, target)
            scale = block[bn].weight / (block[bn].running_var + block[bn].eps).sqrt()
            part.conv.weight.copy_(block[conv].weight * scale.view(-1, 1, 1, 1))
            part.conv.bias.copy_(block[bn].bias - block[bn].running_mean * scale)
            if act is not None:
                part.act.weight.copy_(block[act].weight)
        x = torch.randn(1, 8, 9, 9)
        torch.testing.assert_close(folded(x), net.blocks[1](x), rtol=1e-4, atol=1e-5)


def test_tensorflow_padding_at_even_sides_is_right_and_below():
    net = FoldedMobileFaceNet(MOBILE)
    x = torch.randn(1, 3, 112, 112)
    expected = F.conv2d(F.pad(x, (0, 1, 0, 1)), net.stem.conv.weight, net.stem.conv.bias, stride=2)
    torch.testing.assert_close(net.stem(x), F.prelu(expected, net.stem.act.weight))


def test_resize_is_anti_aliased_bilinear():
    x = torch.rand(1, 2, 64, 48)
    for size in (32, 100):
        expected = F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
        inner = (slice(None), slice(None), slice(3, -3), slice(3, -3))  # at the border torch renormalises differently
        torch.testing.assert_close(resize(x, size)[inner], expected[inner], rtol=1e-4, atol=1e-5)
    assert resize(x[..., :48, :], 48).equal(x[..., :48, :])
