"""Perceptual distances built from weight files given by path: LPIPS and its shift-tolerant relative, st-LPIPS.

Sources: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (LPIPS, heads of
v0.1); Ghildyal & Liu 2022, "Shift-tolerant Perceptual Similarity Metric" (st-LPIPS). The two are different numbers and
are never mixed up: every module says in ``.label`` which one it is.

Both take images in [-1,1] and normalise them exactly once, inside. The published CodeFormer training code normalises
for ImageNet first and hands the result to a network that normalises again.
"""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idcodeformer.errors import MissingWeights, UnsupportedWeights
from idcodeformer.weights.loading import read_state

Features = tuple[Tensor, ...]

# ImageNet mean and standard deviation, moved from [0,1] to the [-1,1] that comes in.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_ALEX_CHANNELS = (64, 192, 384, 256, 256)
_VGG_SLICES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def _unit(features: Tensor) -> Tensor:
    """Unit length over channels. The epsilon under the root keeps the gradient finite where all channels are 0."""
    return features / (features.square().sum(1, keepdim=True) + 1e-20).sqrt()


class BlurPool(nn.Module):
    """[N,C,H,W] -> half the side: 3x3 binomial filter, stride 2 (Zhang 2019), two reflected pixels on each edge."""

    def __init__(self, channels: int):
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", (row[:, None] * row).expand(channels, 1, 3, 3).clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), self.kernel, stride=2, groups=x.shape[1])


class PerceptualDistance(nn.Module):
    """Weighted squared difference of unit-length features at five depths: ``net(a, b) -> [N]``.

    ``a`` is [N,3,H,W] RGB in [-1,1]; ``b`` is the same, or what ``reference_features`` returned, so that the features
    of fixed targets cost no gradient and may be kept. Frozen, always in eval mode, differentiable in ``a``.
    """

    label = ""
    min_size = 16  # px; below this the deepest feature map is empty

    def __init__(self, slices: Sequence[nn.Module], channels: Sequence[int]):
        super().__init__()
        self.slices = nn.ModuleList(slices)
        self.heads = nn.ModuleList(nn.Conv2d(c, 1, 1, bias=False) for c in channels)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "PerceptualDistance":
        """A frozen judge never leaves eval mode, even inside a module that is being trained."""
        return super().train(False)

    def convolutions(self) -> list[nn.Conv2d]:
        """The convolutions of the backbone in order, as the files store them."""
        return [m for m in self.slices.modules() if isinstance(m, nn.Conv2d)]

    def features(self, x: Tensor) -> Features:
        """[N,3,H,W] in [-1,1] -> five maps [N,C,h,w] of unit length over channels."""
        if x.shape[-1] < self.min_size or x.shape[-2] < self.min_size:
            size = f"{x.shape[-1]}x{x.shape[-2]}"
            raise ValueError(f"{self.label} needs images of {self.min_size} px or more, got {size}.")
        x, maps = (x - self.shift) / self.scale, []
        for part in self.slices:
            x = part(x)
            maps.append(_unit(x))
        return tuple(maps)

    @torch.no_grad()
    def reference_features(self, b: Tensor) -> Features:
        """Features of fixed targets ``b`` [N,3,H,W] in [-1,1], without gradient; ``forward`` takes them as ``b``."""
        return self.features(b)

    def forward(self, a: Tensor, b: Tensor | Features) -> Tensor:
        target = self.features(b) if isinstance(b, Tensor) else b
        total = a.new_zeros(a.shape[0])
        for mine, other, head in zip(self.features(a), target, self.heads, strict=True):
            total = total + head((mine - other).square()).mean((1, 2, 3))
        return total


def _alex_tail() -> list[nn.Module]:
    """The fourth and fifth convolution of AlexNet, the same in LPIPS and st-LPIPS."""
    return [nn.Sequential(nn.Conv2d(c, 256, 3, 1, 1), nn.ReLU()) for c in (384, 256)]


class STLPIPS(PerceptualDistance):
    """Shift-tolerant LPIPS on AlexNet: no strided convolution, blurred pooling in place of every stride."""

    label = "st-LPIPS (AlexNet)"

    def __init__(self) -> None:
        def pooled(conv: nn.Conv2d) -> nn.Sequential:
            return nn.Sequential(nn.MaxPool2d(3, 1), BlurPool(conv.in_channels), conv, nn.ReLU())

        first = nn.Sequential(nn.Conv2d(3, 64, 11, 1, 2), BlurPool(64), nn.ReLU())  # blurred before the ReLU
        second, third = pooled(nn.Conv2d(64, 192, 5, 1, 2)), pooled(nn.Conv2d(192, 384, 3, 1, 1))
        super().__init__([first, second, third, *_alex_tail()], _ALEX_CHANNELS)


class LPIPSAlex(PerceptualDistance):
    """LPIPS v0.1 on torchvision's AlexNet: the variant the authors report as the best metric."""

    label = "LPIPS (AlexNet)"
    min_size = 32

    def __init__(self) -> None:
        first = nn.Sequential(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU())
        second = nn.Sequential(nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU())
        third = nn.Sequential(nn.MaxPool2d(3, 2), nn.Conv2d(192, 384, 3, 1, 1), nn.ReLU())
        super().__init__([first, second, third, *_alex_tail()], _ALEX_CHANNELS)


class LPIPSVgg(PerceptualDistance):
    """LPIPS v0.1 on torchvision's VGG16: the variant CodeFormer and most restorers train with."""

    label = "LPIPS (VGG16)"

    def __init__(self) -> None:
        slices, channels = [], 3
        for depth, widths in enumerate(_VGG_SLICES):
            part: list[nn.Module] = [nn.MaxPool2d(2, 2)] if depth else []
            for width in widths:
                part += [nn.Conv2d(channels, width, 3, 1, 1), nn.ReLU()]
                channels = width
            slices.append(nn.Sequential(*part))
        super().__init__(slices, [widths[-1] for widths in _VGG_SLICES])


_CONV_KEY = re.compile(r"^(?:net\.slice\d+|features)\.(\d+)\.weight$")
_HEAD_KEY = re.compile(r"^lin(\d)(?:\.model\.1)?\.weight$")


def _numbered(state: Mapping[str, Tensor], pattern: re.Pattern[str]) -> list[str]:
    """The 4-D tensors whose key matches, in the order of their number."""
    found = [(int(m.group(1)), k) for k, v in state.items() if (m := pattern.match(k)) and v.ndim == 4]
    return [key for _, key in sorted(found)]


def _build_empty(state: Mapping[str, Tensor], path: str) -> PerceptualDistance:
    convolutions = _numbered(state, _CONV_KEY)
    if any(key.endswith(".filt") for key in state):
        return STLPIPS()
    if len(convolutions) in (5, 13):
        return LPIPSAlex() if len(convolutions) == 5 else LPIPSVgg()
    raise UnsupportedWeights(
        f"{path} holds {len(convolutions)} backbone convolutions; a perceptual distance needs AlexNet (5) or VGG16 "
        "(13) with torchvision's keys (features.N.weight), or the complete file of LPIPS or st-LPIPS."
    )


@torch.no_grad()
def load_perceptual(path: str | Path, heads: str | Path | None = None) -> PerceptualDistance:
    """Build the distance that a file holds; which one is read off its keys. The result is frozen and in eval mode.

    ``path``: a complete LPIPS or st-LPIPS file (backbone ``net.sliceK.N.*`` and heads ``linK.model.1.weight``), or a
    torchvision backbone (``alexnet-*.pth`` or ``vgg16-*.pth``) together with ``heads``, the ``alex.pth`` or ``vgg.pth``
    of the lpips package (v0.1). Both .safetensors and .pth are read, never executing a pickle.

    Raises MissingWeights where a file or the linear heads are not there, UnsupportedWeights where they do not fit.
    """
    for file in (path, heads):
        if file is not None and not Path(file).is_file():
            raise MissingWeights(f"Perceptual weights {file} are not there; give the path of the file.")
    state = dict(read_state(path)[0])
    net = _build_empty(state, str(path))
    if heads is not None:
        state.update({k: v for k, v in read_state(heads)[0].items() if _HEAD_KEY.match(k)})
    head_keys = _numbered(state, _HEAD_KEY)
    if len(head_keys) != len(net.heads):
        raise MissingWeights(
            f"{path} holds {len(head_keys)} of {len(net.heads)} linear heads of {net.label}; "
            "give the path of alex.pth or vgg.pth of the lpips package (weights/v0.1) as heads."
        )
    _fill(net.convolutions(), state, _numbered(state, _CONV_KEY), str(path))
    _fill(list(net.heads), state, head_keys, str(heads or path))
    return net


def _fill(modules: Sequence[nn.Conv2d], state: Mapping[str, Tensor], keys: Sequence[str], path: str) -> None:
    for module, key in zip(modules, keys, strict=True):
        if module.weight.shape != state[key].shape:
            raise UnsupportedWeights(
                f"{path}: {key} has shape {tuple(state[key].shape)}, expected {tuple(module.weight.shape)}; "
                "backbone and heads belong to different networks."
            )
        module.weight.copy_(state[key])
        if module.bias is not None:
            module.bias.copy_(state[key.removesuffix("weight") + "bias"])
