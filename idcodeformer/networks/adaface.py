"""AdaFace's backbones IR-18 to IR-101 (Kim et al. 2022, "AdaFace: Quality Adaptive Margin for Face Recognition").

Improved residual units without squeeze-and-excitation (Deng et al. 2019, section 3.1) and a last batch norm without
scale or shift. State-dict keys are those of the published checkpoints, whose trainer writes ``model.`` before each.
"""
from __future__ import annotations

from torch import Tensor, nn

from .arcface import IRSE50, irse_config

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


class AdaFaceIR(IRSE50):
    """AdaFace's IR network: 112-px BGR crops."""

    colour = "bgr"
    unit = IRUnit
    scaled_output = False


adaface_config = irse_config  # the layouts name the same tensors alike
