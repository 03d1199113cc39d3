"""The VQGAN that CodeFormer is built on: encoder, vector quantiser, generator.

Source: Zhou et al. 2022, "Towards Robust Blind Face Restoration with Codebook Lookup Transformer" (section 3.1),
Esser et al. 2021, "Taming Transformers". State-dict keys and shapes are those of the published files.
Every block list is derived from one config, so smaller networks come from the same code.
"""
from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import NetworkConfig


@dataclass(frozen=True)
class VQGANConfig(NetworkConfig):
    """Every number of the autoencoder. The defaults are the published 512-px network."""

    img_size: int = 512  # px, side of the square input
    nf: int = 64  # channels at full resolution
    ch_mult: tuple[int, ...] = (1, 2, 2, 4, 4, 8)  # channels = nf * ch_mult[level]; the side halves at each level
    res_blocks: int = 2  # residual blocks at each level
    attn_resolutions: tuple[int, ...] = (16,)  # sides (px) at which attention follows every residual block
    codebook_size: int = 1024  # number of codes
    emb_dim: int = 256  # length of one code
    norm_channels: int = field(default=1, kw_only=True)  # fewest channels that share the statistics of a group norm

    def __post_init__(self) -> None:
        for name in ("ch_mult", "attn_resolutions"):
            object.__setattr__(self, name, tuple(int(v) for v in getattr(self, name)))
        if self.img_size % self.downscale:
            raise ValueError(
                f"img_size {self.img_size} is not a multiple of {self.downscale}; change img_size or ch_mult."
            )

    @property
    def downscale(self) -> int:
        """Image px per token, along one side."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def latent_side(self) -> int:
        """Tokens along one side."""
        return self.img_size // self.downscale

    def channels_at(self, side: int) -> int:
        """Channels where feature maps are ``side`` px wide."""
        return self.nf * self.ch_mult[round(math.log2(self.img_size / side))]


def group_norm(channels: int, least: int = 1) -> nn.GroupNorm:
    """32 groups as published; fewer where 32 does not divide the channels or a group would hold under ``least``.

    A group of one channel takes that channel's mean away, so a network whose last norm has such groups can hardly set
    the picture's colour.
    """
    return nn.GroupNorm(math.gcd(32, max(1, channels // least)), channels, eps=1e-6)


class ResBlock(nn.Module):
    """[N,Cin,H,W] -> [N,Cout,H,W]: norm, SiLU, 3x3 conv, twice, plus the (projected) input."""

    def __init__(self, cin: int, cout: int, norm_channels: int = 1):
        super().__init__()
        self.norm1 = group_norm(cin, norm_channels)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.norm2 = group_norm(cout, norm_channels)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        self.conv_out = nn.Conv2d(cin, cout, 1) if cin != cout else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_out is None else self.conv_out(x))


class AttnBlock(nn.Module):
    """Single-head self-attention over the H*W positions, with 1x1 projections."""

    def __init__(self, channels: int, norm_channels: int = 1):
        super().__init__()
        self.norm = group_norm(channels, norm_channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        h = self.norm(x)
        q, k, v = (p(h).flatten(2).transpose(1, 2).unsqueeze(1) for p in (self.q, self.k, self.v))  # [N,1,HW,C]
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.squeeze(1).transpose(1, 2).reshape(n, c, height, width))


class Downsample(nn.Module):
    """Halve the side with a strided 3x3 convolution; one row and column of zeros are added right and below."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the side by nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _BlockList(nn.Module):
    """A flat ``blocks`` list plus ``taps``: side (px) -> index of the block whose output the fusion uses."""

    blocks: nn.ModuleList
    taps: dict[int, int]

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Encoder(_BlockList):
    """[N,3,S,S] in [-1,1] -> [N,emb_dim,S/f,S/f]. The tap of a side is the last block before its downsampling."""

    def __init__(self, cfg: VQGANConfig):
        super().__init__()
        norm = cfg.norm_channels
        side, channels = cfg.img_size, cfg.nf
        blocks: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1)]
        self.taps = {}
        for level, mult in enumerate(cfg.ch_mult):
            for _ in range(cfg.res_blocks):
                blocks.append(ResBlock(channels, cfg.nf * mult, norm))
                channels = cfg.nf * mult
                if side in cfg.attn_resolutions:
                    blocks.append(AttnBlock(channels, norm))
            self.taps[side] = len(blocks) - 1
            if level < len(cfg.ch_mult) - 1:
                blocks.append(Downsample(channels))
                side //= 2
        blocks += [ResBlock(channels, channels, norm), AttnBlock(channels, norm), ResBlock(channels, channels, norm)]
        blocks += [group_norm(channels, norm), nn.Conv2d(channels, cfg.emb_dim, 3, padding=1)]
        self.blocks = nn.ModuleList(blocks)


class Generator(_BlockList):
    """[N,emb_dim,h,w] -> [N,3,h*f,w*f], about [-1,1]. The tap of a side is its first residual block."""

    def __init__(self, cfg: VQGANConfig):
        super().__init__()
        norm = cfg.norm_channels
        side, channels = cfg.latent_side, cfg.nf * cfg.ch_mult[-1]
        blocks: list[nn.Module] = [nn.Conv2d(cfg.emb_dim, channels, 3, padding=1)]
        blocks += [ResBlock(channels, channels, norm), AttnBlock(channels, norm), ResBlock(channels, channels, norm)]
        self.taps = {}
        for level in reversed(range(len(cfg.ch_mult))):
            for i in range(cfg.res_blocks):
                blocks.append(ResBlock(channels, cfg.nf * cfg.ch_mult[level], norm))
                channels = cfg.nf * cfg.ch_mult[level]
                if i == 0:
                    self.taps[side] = len(blocks) - 1
                if side in cfg.attn_resolutions:
                    blocks.append(AttnBlock(channels, norm))
            if level:
                blocks.append(Upsample(channels))
                side *= 2
        blocks += [group_norm(channels, norm), nn.Conv2d(channels, 3, 3, padding=1)]
        self.blocks = nn.ModuleList(blocks)


class VectorQuantizer(nn.Module):
    """Nearest-neighbour lookup in the codebook (van den Oord et al. 2017)."""

    def __init__(self, cfg: VQGANConfig):
        super().__init__()
        self.embedding = nn.Embedding(cfg.codebook_size, cfg.emb_dim)
        bound = 1.0 / cfg.codebook_size
        nn.init.uniform_(self.embedding.weight, -bound, bound)

    def nearest(self, z: Tensor) -> Tensor:
        """[N,D,h,w] -> [N,h*w] index of the code at the smallest Euclidean distance."""
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        codes = self.embedding.weight
        distance = flat.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * flat @ codes.t()
        return distance.argmin(1).view(z.shape[0], -1)

    def lookup(self, indices: Tensor, height: int, width: int) -> Tensor:
        """[N,h*w] -> [N,D,h,w]."""
        n = indices.shape[0]
        return self.embedding(indices).view(n, height, width, -1).permute(0, 3, 1, 2).contiguous()

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns quantised z (gradient passed straight through), codebook term, commitment term, indices.

        codebook = |sg(z) - e|^2 moves the codes, commitment = |z - sg(e)|^2 moves the encoder; both are means over
        elements. Equation 2 of CodeFormer weighs the second with beta = 0.25.
        """
        indices = self.nearest(z)
        quant = self.lookup(indices, z.shape[2], z.shape[3])
        codebook = F.mse_loss(quant, z.detach())
        commitment = F.mse_loss(z, quant.detach())
        return z + (quant - z).detach(), codebook, commitment, indices


class VQAutoEncoder(nn.Module):
    """Stage I: image -> codes -> image.

    ``net(x)`` with x [N,3,S,S] in [-1,1] returns ``(image, loss, stats)``; loss = codebook + 0.25 * commitment; stats
    holds ``codebook``, ``commitment`` and ``min_encoding_indices`` [N,h*w].
    """

    commitment_weight = 0.25

    def __init__(self, cfg: VQGANConfig = VQGANConfig()):
        super().__init__()
        self.config = cfg
        self.encoder = Encoder(cfg)
        self.quantize = VectorQuantizer(cfg)
        self.generator = Generator(cfg)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        quant, codebook, commitment, indices = self.quantize(self.encoder(x))
        stats = {"codebook": codebook, "commitment": commitment, "min_encoding_indices": indices}
        return self.generator(quant), codebook + self.commitment_weight * commitment, stats

    @torch.no_grad()
    def tokenize(self, x: Tensor) -> Tensor:
        """[N,3,S,S] in [-1,1] -> [N,h*w] code indices."""
        return self.quantize.nearest(self.encoder(x))


class PatchDiscriminator(nn.Module):
    """PatchGAN discriminator (Isola et al. 2017) with the keys of the published ``vqgan_discriminator.pth``.

    [N,3,S,S] in [-1,1] -> [N,1,h,w] logits. ``norm="batch"`` is the published network; ``norm="group"`` has no running
    state and so behaves alike at any batch size.
    """

    def __init__(self, ndf: int = 64, n_layers: int = 4, norm: str = "batch"):
        super().__init__()
        make = {"batch": nn.BatchNorm2d, "group": group_norm}[norm]
        layers: list[nn.Module] = [nn.Conv2d(3, ndf, 4, 2, 1), nn.LeakyReLU(0.2)]
        cin = ndf
        for n in range(1, n_layers + 1):
            cout = ndf * min(2**n, 8)
            stride = 2 if n < n_layers else 1
            layers += [nn.Conv2d(cin, cout, 4, stride, 1, bias=False), make(cout), nn.LeakyReLU(0.2)]
            cin = cout
        layers.append(nn.Conv2d(cin, 1, 4, 1, 1))
        self.main = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x)
