"""The ArcFace recognisers whose published weights are read: IResNet, IR-SE50 and the gray ResNet18.

Sources: Deng et al. 2019, "ArcFace: Additive Angular Margin Loss for Deep Face Recognition" (improved residual units of
section 3.1, BN-Dropout-FC-BN output); Hu et al. 2018, "Squeeze-and-Excitation Networks". State-dict keys are those of
insightface's arcface_torch, of facexlib's ``recognition_arcface_ir_se50.pth`` and of GFPGAN's ``arcface_resnet18.pth``.
All attributes a caller needs are those of ``EmbeddingNet``. Crops are those of insightface's 112 template throughout; a
network that wants 128 px gets the same crop enlarged.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor, nn

from .config import NetworkConfig
from .embedding_net import EmbeddingNet

DEPTHS = {"r18": (2, 2, 2, 2), "r34": (3, 4, 6, 3), "r50": (3, 4, 14, 3), "r100": (3, 13, 30, 3)}


@dataclass(frozen=True)
class IResNetConfig(NetworkConfig):
    """Every number of a network; the defaults are arcface_torch's r50. Narrow widths make a small recogniser."""

    layers: tuple[int, ...] = DEPTHS["r50"]  # residual units of the four stages
    widths: tuple[int, ...] = (64, 128, 256, 512)  # channels of the four stages; the stem has those of the first
    embedding_dim: int = 512
    input_size: int = 112  # px
    dropout: float = 0.0  # share of features dropped before the last layer, in training only

    @property
    def final_side(self) -> int:
        """Side of the last feature map: every stage halves."""
        side = self.input_size
        for _ in self.layers:
            side = -(-side // 2)
        return side


def _shortcut(cin: int, cout: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))


def _layers(net: nn.Module) -> list[nn.Module]:
    """layer1, layer2, ... of a network: every one halves."""
    return [module for name, module in net.named_children() if name.startswith("layer")]


class IResUnit(nn.Module):
    """BN, conv, BN, PReLU, conv, BN, plus the input; the second convolution has the stride."""

    def __init__(self, cin: int, cout: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(cin)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.prelu = nn.PReLU(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(cout)
        self.downsample = _shortcut(cin, cout, stride) if stride != 1 or cin != cout else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(h)) + (x if self.downsample is None else self.downsample(x))


class IResNet(EmbeddingNet):
    """insightface's arcface_torch network (r18, r34, r50, r100): 112-px RGB crops."""

    def __init__(self, cfg: IResNetConfig = IResNetConfig()):
        super().__init__()
        self.config = cfg
        self.input_size = self.input_width = cfg.input_size
        self.embedding_dim = cfg.embedding_dim
        width = cfg.widths[0]
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        for i, (units, cout) in enumerate(zip(cfg.layers, cfg.widths, strict=True), 1):
            stage = [IResUnit(width if k == 0 else cout, cout, 2 if k == 0 else 1) for k in range(units)]
            self.add_module(f"layer{i}", nn.Sequential(*stage))
            width = cout
        self.bn2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(cfg.dropout)
        self.fc = nn.Linear(width * cfg.final_side**2, cfg.embedding_dim)
        self.features = nn.BatchNorm1d(cfg.embedding_dim)

    @property
    def levels(self) -> list[nn.Module]:
        return _layers(self)

    def embed(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        for layer in self.levels:
            x = layer(x)
        return self.features(self.fc(self.dropout(self.bn2(x).flatten(1))))


class SqueezeExcite(nn.Module):
    """Scale every channel by a gate computed from the channel means."""

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class IRSEUnit(nn.Module):
    """BN, conv, PReLU, conv, BN, squeeze-and-excitation, plus the input (subsampled where only the stride differs)."""

    def __init__(self, cin: int, cout: int, stride: int):
        super().__init__()
        self.shortcut_layer = nn.MaxPool2d(1, stride) if cin == cout else _shortcut(cin, cout, stride)
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(cin),
            nn.Conv2d(cin, cout, 3, padding=1, bias=False),
            nn.PReLU(cout),
            nn.Conv2d(cout, cout, 3, stride, 1, bias=False),
            nn.BatchNorm2d(cout),
            SqueezeExcite(cout),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


class IRSE50(EmbeddingNet):
    """IR-SE50 with the keys of facexlib's ``recognition_arcface_ir_se50.pth``: 112-px RGB crops."""

    unit: Callable[[int, int, int], nn.Module] = IRSEUnit
    scaled_output = True  # whether the last batch norm has scale and shift

    def __init__(self, cfg: IResNetConfig = IResNetConfig()):
        super().__init__()
        self.config = cfg
        self.input_size = self.input_width = cfg.input_size
        self.embedding_dim = cfg.embedding_dim
        width = cfg.widths[0]
        stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.input_layer = nn.Sequential(stem, nn.BatchNorm2d(width), nn.PReLU(width))
        units = []
        for repeats, cout in zip(cfg.layers, cfg.widths, strict=True):
            units += [self.unit(width if k == 0 else cout, cout, 2 if k == 0 else 1) for k in range(repeats)]
            width = cout
        self.body = nn.Sequential(*units)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.Dropout(cfg.dropout),
            nn.Flatten(),
            nn.Linear(width * cfg.final_side**2, cfg.embedding_dim),
            nn.BatchNorm1d(cfg.embedding_dim, affine=self.scaled_output),
        )

    @property
    def levels(self) -> list[nn.Module]:
        return [self.body[end - 1] for end in accumulate(self.config.layers)]

    def embed(self, x: Tensor) -> Tensor:
        return self.output_layer(self.body(self.input_layer(x)))


class GrayUnit(nn.Module):
    """BN, conv, BN, PReLU, conv, BN, plus the input, PReLU; both PReLUs are one, with a single slope."""

    def __init__(self, cin: int, cout: int, stride: int):
        super().__init__()
        self.bn0 = nn.BatchNorm2d(cin)
        self.conv1 = nn.Conv2d(cin, cin, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(cin)
        self.prelu = nn.PReLU()
        self.conv2 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.downsample = _shortcut(cin, cout, stride) if stride != 1 or cin != cout else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.prelu(self.bn1(self.conv1(self.bn0(x))))
        return self.prelu(self.bn2(self.conv2(h)) + (x if self.downsample is None else self.downsample(x)))


GRAY_CONFIG = IResNetConfig(layers=DEPTHS["r18"], input_size=128)


class ResNet18Gray(EmbeddingNet):
    """The recogniser of GFPGAN's identity loss, with the keys of ``arcface_resnet18.pth``: 128-px gray crops."""

    colour = "gray"

    def __init__(self, cfg: IResNetConfig = GRAY_CONFIG):
        super().__init__()
        self.config = cfg
        self.input_size = self.input_width = cfg.input_size
        self.embedding_dim = cfg.embedding_dim
        width = cfg.widths[0]
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU()
        self.maxpool = nn.MaxPool2d(2, 2)
        for i, (units, cout) in enumerate(zip(cfg.layers, cfg.widths, strict=True), 1):
            stride = 1 if i == 1 else 2  # the pooling above has halved once
            stage = [GrayUnit(width if k == 0 else cout, cout, stride if k == 0 else 1) for k in range(units)]
            self.add_module(f"layer{i}", nn.Sequential(*stage))
            width = cout
        self.bn4 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(cfg.dropout)
        self.fc5 = nn.Linear(width * cfg.final_side**2, cfg.embedding_dim)
        self.bn5 = nn.BatchNorm1d(cfg.embedding_dim)

    @property
    def levels(self) -> list[nn.Module]:
        return _layers(self)

    def embed(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.prelu(self.bn1(self.conv1(x))))
        for layer in self.levels:
            x = layer(x)
        return self.bn5(self.fc5(self.dropout(self.bn4(x).flatten(1))))


def _staged_config(state: dict[str, Tensor], linear: str, conv: str, stem: str) -> IResNetConfig:
    layers, widths = [], []
    while f"layer{len(layers) + 1}.0.{conv}.weight" in state:
        prefix = f"layer{len(layers) + 1}."
        layers.append(len({k.split(".")[1] for k in state if k.startswith(prefix)}))
        widths.append(state[f"{prefix}0.{conv}.weight"].shape[0])
    if widths[0] != state[stem].shape[0]:
        raise ValueError(f"the stem has {state[stem].shape[0]} channels and the first stage {widths[0]}")
    return _sized(layers, widths, state[linear])


def _sized(layers: list[int], widths: list[int], linear: Tensor) -> IResNetConfig:
    side = round((linear.shape[1] / widths[-1]) ** 0.5)
    return IResNetConfig(tuple(layers), tuple(widths), linear.shape[0], side * 2 ** len(layers))


def iresnet_config(state: dict[str, Tensor]) -> IResNetConfig:
    """The config of arcface_torch's keys, read off tensor shapes."""
    return _staged_config(state, "fc.weight", "conv2", "conv1.weight")


def gray_config(state: dict[str, Tensor]) -> IResNetConfig:
    """The config of ``arcface_resnet18.pth``'s keys, read off tensor shapes."""
    return _staged_config(state, "fc5.weight", "conv2", "conv1.weight")


def irse_config(state: dict[str, Tensor]) -> IResNetConfig:
    """The config of ``recognition_arcface_ir_se50.pth``'s keys, read off tensor shapes.

    A stage begins where the channels change. Two stages of equal width would look like one.
    """
    layers: list[int] = []
    widths: list[int] = []
    unit = 0
    while (key := f"body.{unit}.res_layer.1.weight") in state:
        cout = state[key].shape[0]
        if not widths or cout != widths[-1]:
            layers.append(0)
            widths.append(cout)
        layers[-1] += 1
        unit += 1
    return _sized(layers, widths, state["output_layer.3.weight"])
