"""MiniParser: a face parser of about a million parameters, for the paste mask where ParseNet's file is absent.

A residual U-Net (Ronneberger et al. 2015; He et al. 2016) whose coarsest map also gets a global context vector, as
BiSeNet's context path does (Yu et al. 2018). The finest map is half the input's side; a pixel shuffle (Shi et al. 2016)
gives the class scores at the input's size.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .config import NetworkConfig


@dataclass(frozen=True)
class MiniParserConfig(NetworkConfig):
    """Every number of the network."""

    widths: tuple[int, ...] = (24, 48, 96, 128)  # channels at 1/2, 1/4, 1/8 ... of the input's side
    blocks: tuple[int, ...] = (1, 1, 2, 2)  # residual blocks of the encoder at each of them
    classes: int = 19
    size: int = 128  # px, the side that it was trained for; others work where every level divides them

    def __post_init__(self) -> None:
        if not self.widths or len(self.widths) != len(self.blocks):
            raise ValueError(f"widths {self.widths} and blocks {self.blocks} differ in length")
        if min(self.widths) < 1 or min(self.blocks) < 0 or self.classes < 2 or self.size % self.stride:
            raise ValueError(f"{self} describes no network; size has to be a multiple of {self.stride}")

    @property
    def stride(self) -> int:
        """Px of the input for one of the coarsest map."""
        return 2 ** len(self.widths)


class _ConvNorm(nn.Sequential):
    """3x3 (or 1x1) convolution and batch norm, then ReLU unless ``linear``."""

    def __init__(self, cin: int, cout: int, kernel: int = 3, stride: int = 1, linear: bool = False):
        super().__init__(nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(cout))
        if not linear:
            self.append(nn.ReLU(inplace=True))

    def fold(self) -> None:
        """Put the norm's running statistics into the convolution; nothing to do where that was done."""
        if isinstance(self[1], nn.BatchNorm2d):
            self[0], self[1] = fuse_conv_bn_eval(self[0], self[1]), nn.Identity()


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Sequential(_ConvNorm(width, width), _ConvNorm(width, width, linear=True))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv(x))


class _Context(nn.Module):
    """Adds to every place what the whole map says: which side a face looks to, whether there is a hat."""

    def __init__(self, width: int):
        super().__init__()
        self.squeeze, self.spread = nn.Conv2d(width, width // 2, 1), nn.Conv2d(width // 2, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.spread(F.relu(self.squeeze(x.mean((2, 3), keepdim=True))))


class _Up(nn.Module):
    """Doubles a map's side and joins it with the encoder's map of that side."""

    def __init__(self, cin: int, width: int):
        super().__init__()
        self.narrow = nn.Conv2d(cin, width, 1, bias=False)
        self.skip = _ConvNorm(width, width, 1, linear=True)
        self.block = _Residual(width)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        up = F.interpolate(self.narrow(x), size=skip.shape[2:], mode="bilinear", align_corners=False)
        return self.block(F.relu(up + self.skip(skip)))


class MiniParser(nn.Module):
    """``net(x)``: class scores [N,classes,S,S] of RGB crops [N,3,S,S] in [-1,1]; S is a multiple of ``cfg.stride``."""

    def __init__(self, cfg: MiniParserConfig = MiniParserConfig()):
        super().__init__()
        self.config = cfg
        cins = (3, *cfg.widths[:-1])
        self.down = nn.ModuleList(
            nn.Sequential(_ConvNorm(cin, width, stride=2), *(_Residual(width) for _ in range(blocks)))
            for cin, width, blocks in zip(cins, cfg.widths, cfg.blocks)
        )
        self.context = _Context(cfg.widths[-1])
        fine = cfg.widths[-2::-1]
        self.up = nn.ModuleList(_Up(cin, width) for cin, width in zip(cfg.widths[:0:-1], fine))
        self.head = nn.Sequential(
            _ConvNorm(cfg.widths[0], cfg.widths[0]), nn.Conv2d(cfg.widths[0], 4 * cfg.classes, 1), nn.PixelShuffle(2)
        )

    def fold(self) -> "MiniParser":
        """Batch norms folded into the convolutions, in place, and channels last: a third faster on a CPU."""
        for module in list(self.modules()):
            if isinstance(module, _ConvNorm):
                module.fold()
        return self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        stride = self.config.stride
        if x.shape[2] % stride or x.shape[3] % stride:
            raise ValueError(f"MiniParser got {tuple(x.shape)}; both sides have to be multiples of {stride}.")
        maps = []
        for level in self.down:
            x = level(x)
            maps.append(x)
        x = self.context(maps.pop())
        for step in self.up:
            x = step(x, maps.pop())
        return self.head(x)


def mini_parser_config(state: dict[str, Tensor]) -> MiniParserConfig:
    """The config read off tensor shapes. The size is not visible: the default is assumed."""
    levels = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("down."))
    widths = tuple(state[f"down.{i}.0.0.weight"].shape[0] for i in range(levels))
    blocks = tuple(
        len({key.split(".")[2] for key in state if key.startswith(f"down.{i}.")}) - 1 for i in range(levels)
    )
    return MiniParserConfig(widths, blocks, state["head.1.weight"].shape[0] // 4)
