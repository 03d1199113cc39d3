"""The blocks of the VQGAN and of the fusion, run strip by strip on the CPU (see strips.py).

Every runner is built from a module, keeps its own laid-out weights, and maps a ``Map`` to a ``Map``. The module is read
once and never changed.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable, Iterator, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...networks.codeformer import FuseBlock
from ...networks.vqgan import AttnBlock, Downsample, ResBlock, Upsample
from .strips import Conv, Moments, Scratch, as_nchw, strips


@dataclass
class Map:
    """A feature map [H,W,C] in scratch memory, and the moments of its channels."""

    rows: Tensor
    moments: Moments = field(default_factory=Moments)

    @classmethod
    def take(cls, scratch: Scratch, height: int, width: int, channels: int, dtype: torch.dtype) -> "Map":
        return cls(scratch.take((height, width, channels), dtype))

    @classmethod
    def load(cls, scratch: Scratch, chw: Tensor, dtype: torch.dtype) -> "Map":
        """A copy of [C,H,W] in scratch memory, without moments."""
        m = cls.take(scratch, *chw.shape[1:], chw.shape[0], dtype)
        m.chw.copy_(chw)
        return m

    @property
    def chw(self) -> Tensor:
        """[C,H,W], the same memory."""
        return self.rows.permute(2, 0, 1)

    def give(self, scratch: Scratch) -> None:
        scratch.give(self.rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.rows.shape)

    def strips(self, factor: int = 1) -> Iterator[tuple[int, int]]:
        """Runs of rows; ``factor`` says how much larger than this map the working set of a row is."""
        return strips(self.rows.shape[0], self.rows[0].nbytes * factor)

    def with_neighbours(self, a: int, b: int, reach: int) -> Tensor:
        """Rows a-reach .. b+reach; zeros outside of the map."""
        height = self.rows.shape[0]
        rows = self.rows[max(0, a - reach) : min(height, b + reach)]
        return pad_rows(rows, max(0, reach - a), max(0, b + reach - height))


R = TypeVar("R")


class Runner(Protocol):
    """One block. It owns its input: it gives the memory back or works in place."""

    def __call__(self, x: Map, scratch: Scratch) -> Map: ...


def pad_rows(rows: Tensor, above: int, below: int) -> Tensor:
    """Zero rows above and below [h,W,C]; the same tensor where none are asked."""
    return F.pad(rows, (0, 0, 0, 0, above, below)) if above or below else rows


class NormAct:
    """GroupNorm, then SiLU where asked, read off a map strip by strip."""

    def __init__(self, norm: nn.GroupNorm, silu: bool):
        self.norm, self.silu = norm, silu

    def bind(self, x: Map) -> "BoundNorm":
        return BoundNorm(x, *x.moments.affine(self.norm), self.silu)


class BoundNorm:
    """NormAct of one map: its statistics are known."""

    def __init__(self, x: Map, scale: Tensor, shift: Tensor, silu: bool):
        self.x, self.scale, self.shift, self.silu = x, scale, shift, silu
        self._zero, self._one = torch.zeros_like(scale), torch.ones_like(scale)

    def __call__(self, a: int, b: int, reach: int) -> Tensor:
        """Normalised rows a-reach .. b+reach; outside of the map zeros, the convolution's padding."""
        height = self.x.rows.shape[0]
        rows = self.x.rows[max(0, a - reach) : min(height, b + reach)]
        if rows.dtype == torch.float32:
            y = torch.addcmul(self.shift, rows, self.scale)
        else:  # float32 arithmetic on half-precision pixels, in one pass
            y = F.batch_norm(as_nchw(rows), self._zero, self._one, self.scale, self.shift, eps=0.0)[0].permute(1, 2, 0)
        if self.silu:
            F.silu(y, inplace=True)
        return pad_rows(y, max(0, reach - a), max(0, b + reach - height))


class RunConv:
    """A 3x3 convolution, after a norm without activation where one stands before it (the tails)."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype, norm: nn.GroupNorm | None = None):
        self.conv, self.norm = Conv.of(conv, dtype), NormAct(norm, silu=False) if norm is not None else None

    def __call__(self, x: Map, scratch: Scratch) -> Map:
        read = self.norm.bind(x) if self.norm else x.with_neighbours
        out = Map.take(scratch, *x.shape[:2], self.conv.out_channels, x.rows.dtype)
        for a, b in max((x, out), key=lambda m: m.shape[2]).strips():
            out.rows[a:b] = self.conv(read(a, b, self.conv.reach))
            out.moments.add(out.rows[a:b])
        scratch.give(x.rows)
        return out


class RunRes:
    """ResBlock. The second convolution adds onto the input (or its projection) in place."""

    def __init__(self, block: ResBlock, dtype: torch.dtype):
        self.norm1, self.norm2 = NormAct(block.norm1, True), NormAct(block.norm2, True)
        self.conv1, self.conv2 = Conv.of(block.conv1, dtype), Conv.of(block.conv2, dtype)
        self.project = None if block.conv_out is None else Conv.of(block.conv_out, dtype)

    def __call__(self, x: Map, scratch: Scratch) -> Map:
        dtype, read = x.rows.dtype, self.norm1.bind(x)
        h = Map.take(scratch, *x.shape[:2], self.conv1.out_channels, dtype)
        for a, b in max((x, h), key=lambda m: m.shape[2]).strips():
            h.rows[a:b].zero_()
            self.conv1.add_to(h.rows[a:b], read(a, b, 1))
            h.moments.add(h.rows[a:b])
        read = self.norm2.bind(h)
        out = Map(x.rows) if self.project is None else Map.take(scratch, *h.shape, dtype)
        for a, b in max((x, h), key=lambda m: m.shape[2]).strips():
            if self.project is not None:
                out.rows[a:b] = self.project(x.rows[a:b])
            self.conv2.add_to(out.rows[a:b], read(a, b, 1))
            out.moments.add(out.rows[a:b])
        scratch.give(h.rows)
        if self.project is not None:
            scratch.give(x.rows)
        return out


class RunAttn:
    """AttnBlock: small maps only, so the whole map at once."""

    def __init__(self, block: AttnBlock, dtype: torch.dtype):
        self.norm = NormAct(block.norm, silu=False)
        weight = torch.cat([block.q.weight, block.k.weight, block.v.weight])
        self.qkv = Conv(weight, torch.cat([block.q.bias, block.k.bias, block.v.bias]), dtype)
        self.proj_out = Conv.of(block.proj_out, dtype)

    def __call__(self, x: Map, scratch: Scratch) -> Map:
        height, width, channels = x.shape
        qkv = self.qkv(self.norm.bind(x)(0, height, 0)).reshape(1, 1, height * width, 3 * channels)
        h = F.scaled_dot_product_attention(*qkv.chunk(3, dim=3)).reshape(height, width, channels)
        self.proj_out.add_to(x.rows, h)
        out = Map(x.rows)
        out.moments.add(out.rows)
        return out


class RunDown:
    """Downsample: stride 2, one row and column of zeros right and below."""

    def __init__(self, block: Downsample, dtype: torch.dtype):
        self.conv = Conv.of(block.conv, dtype, pad=0)

    def __call__(self, x: Map, scratch: Scratch) -> Map:
        height, width, channels = x.shape
        out = Map.take(scratch, height // 2, width // 2, self.conv.out_channels, x.rows.dtype)
        for a, b in out.strips(factor=4):
            rows = x.rows[2 * a : 2 * b + 1]
            out.rows[a:b] = self.conv(F.pad(rows, (0, 0, 0, 1, 0, 2 * (b - a) + 1 - rows.shape[0])))
            out.moments.add(out.rows[a:b])
        scratch.give(x.rows)
        return out


class RunUp:
    """Upsample: nearest neighbour and 3x3 are together four 2x2 convolutions on the small map, one per output parity.

    An output pixel of even row sees the source rows i-1, i, i with weights k0, k1, k2, an odd one i, i, i+1: adding the
    weights of equal rows first leaves 4 of 9 products (Shi et al. 2016, "Is the deconvolution layer the same as a
    convolutional layer?").
    """

    def __init__(self, block: Upsample, dtype: torch.dtype):
        w = block.conv.weight.detach().double()
        self.channels = w.shape[0]

        def halves(k: Tensor, dim: int) -> list[Tensor]:
            first, middle, last = k.unbind(dim)
            return [torch.stack([first, middle + last], dim), torch.stack([first + middle, last], dim)]

        kernels = [kernel for rows in halves(w, 2) for kernel in halves(rows, 3)]  # parity (0,0), (0,1), (1,0), (1,1)
        self.conv = Conv(torch.cat(kernels).float(), block.conv.bias.repeat(4), dtype, pad=1)

    def __call__(self, x: Map, scratch: Scratch) -> Map:
        height, width, _ = x.shape
        c = self.channels
        out = Map.take(scratch, 2 * height, 2 * width, c, x.rows.dtype)
        pairs = out.rows.view(height, 2, width, 2, c)
        for a, b in x.strips(factor=4):
            y = self.conv(x.with_neighbours(a, b, 1))  # [b-a+1, W+1, 4c]; y[i,j] sees source rows i-1 and i
            for parity in range(4):
                row, col = divmod(parity, 2)
                shifted = y[row : row + b - a, col : col + width, parity * c : (parity + 1) * c]
                pairs[a:b, row, :, col] = shifted
            out.moments.add(out.rows[2 * a : 2 * b])
        scratch.give(x.rows)
        return out


class RunFuse:
    """Controllable feature transformation: dec + w * (dec * scale + shift), in place on dec."""

    def __init__(self, block: FuseBlock, dtype: torch.dtype):
        self.encode = RunRes(block.encode_enc, dtype)
        (scale, _, scale_out), (shift, _, shift_out) = block.scale, block.shift
        self.slope = block.scale[1].negative_slope
        self.first = [Conv.of(scale, dtype), Conv.of(shift, dtype)]
        self.second = [Conv.of(scale_out, dtype), Conv.of(shift_out, dtype)]

    def __call__(self, enc: Tensor, dec: Map, w: float | Tensor, scratch: Scratch) -> Map:
        """enc [C,H,W] of any dtype is left as it is."""
        enc = enc.permute(1, 2, 0)
        height, width, c = dec.shape
        both = Map.take(scratch, height, width, 2 * c, dec.rows.dtype)
        for a, b in both.strips():
            both.rows[a:b, :, :c] = enc[a:b]
            both.rows[a:b, :, c:] = dec.rows[a:b]
            both.moments.add(both.rows[a:b])
        h = self.encode(both, scratch)
        out = Map(dec.rows)
        for a, b in h.strips():
            scale, shift = (self._branch(h, a, b, *convs) for convs in zip(self.first, self.second))
            rows = out.rows[a:b]
            rows.add_(scale.mul_(rows).add_(shift).mul_(w))
            out.moments.add(rows)
        scratch.give(h.rows)
        return out

    def _branch(self, h: Map, a: int, b: int, first: Conv, second: Conv) -> Tensor:
        """conv, leaky ReLU, conv: the two rows shared with the neighbour strips are computed in both."""
        top, bottom = max(0, a - 1), min(h.shape[0], b + 1)
        t = F.leaky_relu_(first(h.with_neighbours(top, bottom, 1)), self.slope)
        return second(pad_rows(t, top - (a - 1), b + 1 - bottom))


def compile_blocks(blocks: nn.ModuleList, dtype: torch.dtype) -> list[Runner | None]:
    """A runner for every block, at the same index."""
    kinds = {ResBlock: RunRes, AttnBlock: RunAttn, Downsample: RunDown, Upsample: RunUp}
    return in_order(blocks, lambda conv, norm: RunConv(conv, dtype, norm), lambda b: kinds[type(b)](b, dtype))


def in_order(
    blocks: nn.ModuleList, conv: Callable[[nn.Conv2d, nn.GroupNorm | None], R], other: Callable[[nn.Module], R]
) -> list[R | None]:
    """What ``conv`` and ``other`` make of every block, at the same index; a norm before a convolution joins it and
    leaves None."""
    runners: list[R | None] = []
    norm = None
    for block in blocks:
        if isinstance(block, nn.GroupNorm):
            norm = block
            runners.append(None)
        elif isinstance(block, nn.Conv2d):
            runners.append(conv(block, norm))
            norm = None
        else:
            runners.append(other(block))
    return runners
