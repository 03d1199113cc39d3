"""MobileFaceNet: a recogniser of about one million parameters.

Source: Chen et al. 2018, "MobileFaceNets: Efficient CNNs for Accurate Real-Time Face Verification on Mobile Devices"
(table 1). Two sets of state-dict keys exist in public files and both are read: the PyTorch network with batch norms
(``MobileFaceNet``, also the one to train), and the TensorFlow network with batch norms folded into the convolutions
(``FoldedMobileFaceNet``).
"""
from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from .config import NetworkConfig
from .embedding_net import EmbeddingNet


@dataclass(frozen=True)
class MobileFaceNetConfig(NetworkConfig):
    """Every number of the network; the defaults are table 1 of the paper."""

    stages: tuple[tuple[int, int, int, int], ...] = (  # expansion, channels, repeats, stride of the first
        (2, 64, 5, 2),
        (4, 128, 1, 2),
        (2, 128, 6, 1),
        (4, 128, 1, 2),
        (2, 128, 2, 1),
    )
    stem: int = 64  # channels of the first convolution
    head: int = 512  # channels before and after the global depthwise convolution
    embedding_dim: int = 128
    input_width: int = 112  # px; 96 = the middle columns of the 112-px crop
    pixel_scale: float = 127.5 / 128  # both public files were trained on (p - 127.5) / 128, p in 0..255

    @property
    def blocks(self) -> list[tuple[int, int, int, int]]:
        """(channels in, channels out, stride, expansion) of every bottleneck."""
        shapes, channels = [], self.stem
        for expansion, cout, repeats, first in self.stages:
            for i in range(repeats):
                shapes.append((channels, cout, first if i == 0 else 1, expansion))
                channels = cout
        return shapes

    @property
    def final_size(self) -> tuple[int, int]:
        """(height, width) of the last feature map, which the global depthwise convolution covers."""
        stride = 2
        for _, _, _, first in self.stages:
            stride *= first
        return -(-112 // stride), -(-self.input_width // stride)


class _ConvNorm(nn.Module):
    """Convolution, batch norm and, unless linear, PReLU."""

    def __init__(self, cin: int, cout: int, kernel, stride: int = 1, padding: int = 0, groups: int = 1, linear=False):
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(cout)
        self.prelu = None if linear else nn.PReLU(cout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return x if self.prelu is None else self.prelu(x)


class _Bottleneck(nn.Module):
    """Inverted residual with a linear projection (MobileNetV2)."""

    def __init__(self, cin: int, cout: int, stride: int, expansion: int):
        super().__init__()
        mid = cin * expansion
        self.residual = stride == 1 and cin == cout
        self.conv = nn.Sequential(
            nn.Conv2d(cin, mid, 1, bias=False),
            nn.BatchNorm2d(mid),
            nn.PReLU(mid),
            nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False),
            nn.BatchNorm2d(mid),
            nn.PReLU(mid),
            nn.Conv2d(mid, cout, 1, bias=False),
            nn.BatchNorm2d(cout),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileFaceNet(EmbeddingNet):
    """The trainable network, with the keys of Xiaoccer/MobileFaceNet_Pytorch (whose own file has input_width=96)."""

    def __init__(self, cfg: MobileFaceNetConfig = MobileFaceNetConfig()):
        super().__init__()
        self.config = cfg
        self.embedding_dim, self.input_width, self.pixel_scale = cfg.embedding_dim, cfg.input_width, cfg.pixel_scale
        self.conv1 = _ConvNorm(3, cfg.stem, 3, 2, 1)
        self.dw_conv1 = _ConvNorm(cfg.stem, cfg.stem, 3, 1, 1, cfg.stem)
        self.blocks = nn.Sequential(*(_Bottleneck(*shape) for shape in cfg.blocks))
        self.conv2 = _ConvNorm(cfg.stages[-1][1], cfg.head, 1)
        self.linear7 = _ConvNorm(cfg.head, cfg.head, cfg.final_size, groups=cfg.head, linear=True)
        self.linear1 = _ConvNorm(cfg.head, cfg.embedding_dim, 1, linear=True)

    @property
    def levels(self) -> list[nn.Module]:
        return _level_ends(self.blocks, self.config)

    def embed(self, x: Tensor) -> Tensor:
        x = self.conv2(self.blocks(self.dw_conv1(self.conv1(x))))
        return self.linear1(self.linear7(x)).flatten(1)


class _SameConv(nn.Module):
    """Convolution padded as TensorFlow's "SAME" (the odd pixel right and below) and, unless linear, PReLU."""

    def __init__(self, cin: int, cout: int, kernel=1, stride: int = 1, groups: int = 1, linear=False, valid=False):
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel, stride, groups=groups)
        self.act = None if linear else nn.PReLU(cout)
        self.pads = not valid and kernel != 1

    def _padding(self, length: int, axis: int) -> tuple[int, int]:
        kernel, stride = self.conv.kernel_size[axis], self.conv.stride[axis]
        total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
        return total // 2, total - total // 2

    def forward(self, x: Tensor) -> Tensor:
        if self.pads:
            x = F.pad(x, self._padding(x.shape[3], 1) + self._padding(x.shape[2], 0))
        x = self.conv(x)
        return x if self.act is None else self.act(x)


class _FoldedBottleneck(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, expansion: int):
        super().__init__()
        mid = cin * expansion
        self.residual = stride == 1 and cin == cout
        self.pw = _SameConv(cin, mid)
        self.dw = _SameConv(mid, mid, 3, stride, mid)
        self.pl = _SameConv(mid, cout, linear=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.pl(self.dw(self.pw(x)))
        return x + h if self.residual else h


class FoldedMobileFaceNet(EmbeddingNet):
    """The network of the public ``MobileFaceNet.tflite`` (192 numbers), batch norms folded: not for training."""

    def __init__(self, cfg: MobileFaceNetConfig = MobileFaceNetConfig(embedding_dim=192)):
        super().__init__()
        self.config = cfg
        self.embedding_dim, self.input_width, self.pixel_scale = cfg.embedding_dim, cfg.input_width, cfg.pixel_scale
        self.stem = _SameConv(3, cfg.stem, 3, 2)
        self.dw = _SameConv(cfg.stem, cfg.stem, 3, 1, cfg.stem)
        self.pl = _SameConv(cfg.stem, cfg.stem, linear=True)
        self.blocks = nn.Sequential(*(_FoldedBottleneck(*shape) for shape in cfg.blocks))
        self.head = _SameConv(cfg.stages[-1][1], cfg.head)
        self.gdc = _SameConv(cfg.head, cfg.head, cfg.final_size, groups=cfg.head, linear=True, valid=True)
        self.fc1 = _SameConv(cfg.head, cfg.head, linear=True)
        self.fc2 = _SameConv(cfg.head, cfg.embedding_dim, linear=True)

    @property
    def levels(self) -> list[nn.Module]:
        return _level_ends(self.blocks, self.config)

    def embed(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.pl(self.dw(self.stem(x)))))
        return self.fc2(self.fc1(self.gdc(x))).flatten(1)


def _level_ends(blocks: nn.Sequential, cfg: MobileFaceNetConfig) -> list[nn.Module]:
    """The last block of each resolution: those before a stride, and the very last."""
    after = [stride for _, _, stride, _ in cfg.blocks[1:]]
    return [block for block, stride in zip(blocks, [*after, 2], strict=True) if stride > 1]


def mobilefacenet_config(state: dict[str, Tensor]) -> MobileFaceNetConfig:
    """The config of either key set, read off tensor shapes. Strides are not visible: the paper's are assumed."""
    folded = "gdc.conv.weight" in state
    stem = state["stem.conv.weight" if folded else "conv1.conv.weight"].shape[0]
    gdc = state["gdc.conv.weight" if folded else "linear7.conv.weight"]
    out = state["fc2.conv.weight" if folded else "linear1.conv.weight"]
    up, down = ("pw.conv.weight", "pl.conv.weight") if folded else ("conv.0.weight", "conv.6.weight")
    shapes = []  # (expansion, channels) of every block
    while f"blocks.{len(shapes)}.{up}" in state:
        first, last = state[f"blocks.{len(shapes)}.{up}"], state[f"blocks.{len(shapes)}.{down}"]
        shapes.append((first.shape[0] // first.shape[1], last.shape[0]))
    default = MobileFaceNetConfig()
    if len(shapes) != sum(stage[2] for stage in default.stages):
        raise ValueError(f"{len(shapes)} blocks; this MobileFaceNet has {sum(stage[2] for stage in default.stages)}")
    stages, at = [], 0
    for _, _, repeats, first in default.stages:
        stages.append((*shapes[at], repeats, first))
        at += repeats
    width = 96 if gdc.shape[3] == 6 else 112
    return MobileFaceNetConfig(tuple(stages), stem, gdc.shape[0], out.shape[0], width)

