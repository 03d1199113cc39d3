"""RetinaFace (Deng et al. 2020) over MobileNet 0.25 or ResNet-50, with the tensor names of the published files.

Those are biubug6/Pytorch_Retinaface's, which facexlib took over. facexlib's own class needs torchvision, whose import
costs 1.5 seconds and 180 MB (torchvision 0.29 imports torch's compiler).
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NETWORKS = ("mobile0.25", "resnet50")
_ANCHORS = 2  # at every place of every level
_HEADS = {"ClassHead": 2, "BboxHead": 4, "LandmarkHead": 10}  # numbers for each anchor
# (channels, stride) of the depthwise blocks of each stage, behind a convolution to 8 channels
_MOBILE = (
    ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1)),
    ((128, 2), (128, 1), (128, 1), (128, 1), (128, 1), (128, 1)),
    ((256, 2), (256, 1)),
)
_RESNET = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))  # width, blocks, stride of each layer


def _conv(before: int, after: int, side: int = 3, stride: int = 1, slope: float | None = None, groups: int = 1) -> list:
    """Convolution, batch norm and, with a ``slope``, a leaky ReLU."""
    layers = [nn.Conv2d(before, after, side, stride, side // 2, groups=groups, bias=False), nn.BatchNorm2d(after)]
    return layers if slope is None else [*layers, nn.LeakyReLU(slope, inplace=True)]


class _Mobile(nn.Module):
    """MobileNet of a quarter of the width; three maps of 64, 128 and 256 channels at an 8th, 16th and 32nd."""

    def __init__(self) -> None:
        super().__init__()
        width = 8
        for number, blocks in enumerate(_MOBILE, 1):
            stage = [nn.Sequential(*_conv(3, width, stride=2, slope=0.1))] if number == 1 else []
            for after, stride in blocks:
                deep = _conv(width, width, stride=stride, slope=0.1, groups=width)
                stage.append(nn.Sequential(*deep, *_conv(width, after, 1, slope=0.1)))
                width = after
            setattr(self, f"stage{number}", nn.Sequential(*stage))

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.stage1(x)
        middle = self.stage2(fine)
        return [fine, middle, self.stage3(middle)]


class _Bottleneck(nn.Module):
    """ResNet's block of three convolutions (He et al. 2016; the stride in the middle one)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(before, width, 1)
        self.conv2, self.bn2 = _conv(width, width, 3, stride)
        self.conv3, self.bn3 = _conv(width, 4 * width, 1)
        fits = before == 4 * width and stride == 1
        self.downsample = None if fits else nn.Sequential(*_conv(before, 4 * width, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu_(self.bn1(self.conv1(x)))
        out = F.relu_(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu_(out.add_(x if self.downsample is None else self.downsample(x)))


class _ResNet50(nn.Module):
    """Three maps of 512, 1024 and 2048 channels at an 8th, 16th and 32nd."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        before = 64
        for number, (width, blocks, stride) in enumerate(_RESNET, 1):
            layer = []
            for block in range(blocks):
                layer.append(_Bottleneck(before, width, stride if block == 0 else 1))
                before = 4 * width
            setattr(self, f"layer{number}", nn.Sequential(*layer))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.max_pool2d(F.relu_(self.bn1(self.conv1(x))), 3, 2, 1)
        fine = self.layer2(self.layer1(x))
        middle = self.layer3(fine)
        return [fine, middle, self.layer4(middle)]


class _Pyramid(nn.Module):
    """Coarse maps added to finer ones (feature pyramid, Lin et al. 2017)."""

    def __init__(self, channels: tuple[int, int, int], width: int, slope: float) -> None:
        super().__init__()
        for number, before in enumerate(channels, 1):
            setattr(self, f"output{number}", nn.Sequential(*_conv(before, width, 1, slope=slope)))
        self.merge1 = nn.Sequential(*_conv(width, width, slope=slope))
        self.merge2 = nn.Sequential(*_conv(width, width, slope=slope))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        fine, middle, coarse = self.output1(maps[0]), self.output2(maps[1]), self.output3(maps[2])
        middle = self.merge2(middle + F.interpolate(coarse, middle.shape[2:], mode="nearest"))
        return [self.merge1(fine + F.interpolate(middle, fine.shape[2:], mode="nearest")), middle, coarse]


class _Context(nn.Module):
    """Views of 3, 5 and 7 px beside each other (SSH, Najibi et al. 2017)."""

    def __init__(self, width: int, slope: float) -> None:
        super().__init__()
        half, quarter = width // 2, width // 4
        self.conv3X3 = nn.Sequential(*_conv(width, half))
        self.conv5X5_1 = nn.Sequential(*_conv(width, quarter, slope=slope))
        self.conv5X5_2 = nn.Sequential(*_conv(quarter, quarter))
        self.conv7X7_2 = nn.Sequential(*_conv(quarter, quarter, slope=slope))
        self.conv7x7_3 = nn.Sequential(*_conv(quarter, quarter))

    def forward(self, x: Tensor) -> Tensor:
        wider = self.conv5X5_1(x)
        return F.relu_(torch.cat([self.conv3X3(x), self.conv5X5_2(wider), self.conv7x7_3(self.conv7X7_2(wider))], 1))


class _Head(nn.Module):
    """[N,C,h,w] -> [N, h*w*anchors, count], row by row."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.conv1x1, self.count = nn.Conv2d(width, _ANCHORS * count, 1), count

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1x1(x).permute(0, 2, 3, 1).reshape(len(x), -1, self.count)


class RetinaFace(nn.Module):
    """BGR grey levels less their mean [N,3,H,W] -> box offsets [N,P,4], probabilities [N,P,2] of none and a face, and
    landmark offsets [N,P,10], for the P anchors of the levels at 8, 16 and 32 px. ValueError for another name."""

    def __init__(self, network_name: str) -> None:
        super().__init__()
        if network_name not in NETWORKS:
            raise ValueError(f"RetinaFace {network_name!r} is none of {', '.join(NETWORKS)}.")
        mobile = network_name == "mobile0.25"
        width, slope = (64, 0.1) if mobile else (256, 0.0)
        self.body = _Mobile() if mobile else _ResNet50()
        self.fpn = _Pyramid((64, 128, 256) if mobile else (512, 1024, 2048), width, slope)
        self.ssh1, self.ssh2, self.ssh3 = (_Context(width, slope) for _ in range(3))
        for name, count in _HEADS.items():
            setattr(self, name, nn.ModuleList(_Head(width, count) for _ in range(3)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = [see(m) for see, m in zip((self.ssh1, self.ssh2, self.ssh3), self.fpn(self.body(x)))]
        scores, boxes, points = (
            torch.cat([head(m) for head, m in zip(getattr(self, name), maps)], 1) for name in _HEADS
        )
        return boxes, scores.softmax(-1), points
