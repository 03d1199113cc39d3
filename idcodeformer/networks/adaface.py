"""AdaFace's backbones IR-18 to IR-101 (Kim et al. 2022, "AdaFace: Quality Adaptive Margin for Face Recognition").

Improved residual units without squeeze-and-excitation (Deng et al. 2019, section 3.1) and a last batch norm without
scale or shift. State-dict keys are those of the published checkpoints, whose trainer writes ``model.`` before each.
"""
from __future__ import annotations

from itertools import accumulate

from torch import Tensor, nn

from .arcface import IResNetConfig, irse_config
from .embedding_net import EmbeddingNet

ADAFACE_KEYS = ("input_layer.0.weight", "body.0.res_layer.5.running_var", "output_layer.4.running_mean")


class IRUnit(nn.Module):
    """BN, conv, BN, PReLU, conv, BN, plus the input (subsampled where only the stride differs)."""

    def __init__(self, cin: int, cout: int, stride: int):
        super().__init__()
        projected = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))
        self.shortcut_layer = nn.MaxPool2d(1, stride) if cin == cout else projected
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(cin),
            nn.Conv2d(cin, cout, 3, padding=1, bias=False),
            nn.BatchNorm2d(cout),
            nn.PReLU(cout),
            nn.Conv2d(cout, cout, 3, stride, 1, bias=False),
            nn.BatchNorm2d(cout),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


class AdaFaceIR(EmbeddingNet):
    """AdaFace's IR network: 112-px BGR crops."""

    colour = "bgr"

    def __init__(self, cfg: IResNetConfig):
        super().__init__()
        self.config = cfg
        self.input_size = self.input_width = cfg.input_size
        self.embedding_dim = cfg.embedding_dim
        width = cfg.widths[0]
        stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.input_layer = nn.Sequential(stem, nn.BatchNorm2d(width), nn.PReLU(width))
        units = []
        for repeats, cout in zip(cfg.layers, cfg.widths, strict=True):
            units += [IRUnit(width if k == 0 else cout, cout, 2 if k == 0 else 1) for k in range(repeats)]
            width = cout
        self.body = nn.Sequential(*units)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.Dropout(cfg.dropout),
            nn.Flatten(),
            nn.Linear(width * cfg.final_side**2, cfg.embedding_dim),
            nn.BatchNorm1d(cfg.embedding_dim, affine=False),
        )

    @property
    def levels(self) -> list[nn.Module]:
        return [self.body[end - 1] for end in accumulate(self.config.layers)]

    def embed(self, x: Tensor) -> Tensor:
        return self.output_layer(self.body(self.input_layer(x)))


adaface_config = irse_config  # the layouts name the same tensors alike
