"""MobileFace V2: a recogniser of 0.9 million parameters, inverted residuals down to 4 x 4 px and one full layer.

Source: becauseofAI/MobileFace, "MobileFace_Identification_V2" (MIT), after Sandler et al. 2018, "MobileNetV2: Inverted
Residuals and Linear Bottlenecks". Batch norms are folded into the convolutions: not for training.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from .config import NetworkConfig
from .embedding_net import EmbeddingNet

MOBILEFACE_KEYS = ("stem.weight", "blocks.0.expand.weight", "blocks.0.depthwise.weight", "full.weight")
_STAGES = 4  # each halves the side after the stem has


@dataclass(frozen=True)
class MobileFaceConfig(NetworkConfig):
    """Every number of the network; the defaults are those of the public file."""

    stem: int = 32  # channels of the first convolution
    channels: tuple[int, ...] = (32, 32, 64, 128)  # of each stage
    repeats: int = 3  # blocks of a stage, the first with stride 2
    expansion: int = 3
    embedding_dim: int = 256
    pixel_scale: float = 127.5 / 128  # trained on (p - 127.5) / 128, p in 0..255


class _Block(nn.Module):
    """Inverted residual with a linear projection; the activation is ReLU6."""

    def __init__(self, cin: int, cout: int, stride: int, expansion: int):
        super().__init__()
        mid = cin * expansion
        self.residual = stride == 1
        self.expand = nn.Conv2d(cin, mid, 1)
        self.depthwise = nn.Conv2d(mid, mid, 3, stride, 1, groups=mid)
        self.project = nn.Conv2d(mid, cout, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.project(F.relu6(self.depthwise(F.relu6(self.expand(x)))))
        return x + h if self.residual else h


class MobileFace(EmbeddingNet):
    """[N,3,S,S] RGB in [-1,1] on ArcFace's template -> [N,embedding_dim]."""

    def __init__(self, cfg: MobileFaceConfig = MobileFaceConfig()):
        super().__init__()
        self.config = cfg
        self.embedding_dim, self.pixel_scale = cfg.embedding_dim, cfg.pixel_scale
        self.stem = nn.Conv2d(3, cfg.stem, 3, 2, 1)
        blocks, cin = [], cfg.stem
        for cout in cfg.channels:
            for number in range(cfg.repeats):
                blocks.append(_Block(cin, cout, 1 if number else 2, cfg.expansion))
                cin = cout
        self.blocks = nn.Sequential(*blocks)
        side = -(-self.input_size // 2 ** (1 + len(cfg.channels)))
        self.full = nn.Linear(cin * side * side, cfg.embedding_dim)

    @property
    def levels(self) -> list[nn.Module]:
        repeats = self.config.repeats
        return [self.blocks[n] for n in range(repeats - 1, len(self.blocks), repeats)]

    def embed(self, x: Tensor) -> Tensor:
        return self.full(self.blocks(F.relu6(self.stem(x))).flatten(1))


def mobileface_config(state: dict[str, Tensor]) -> MobileFaceConfig:
    """The config, read off tensor shapes. Strides are not visible: one stage for each halving down to 4 x 4 px."""
    channels = []
    while f"blocks.{len(channels)}.project.weight" in state:
        channels.append(state[f"blocks.{len(channels)}.project.weight"].shape[0])
    repeats, rest = divmod(len(channels), _STAGES)
    if rest or not repeats:
        raise ValueError(f"{len(channels)} blocks; MobileFace has {_STAGES} stages of the same length")
    expand = state["blocks.0.expand.weight"]
    return MobileFaceConfig(
        state["stem.weight"].shape[0], tuple(channels[::repeats]), repeats, expand.shape[0] // expand.shape[1],
        state["full.weight"].shape[0],
    )  # fmt: skip
