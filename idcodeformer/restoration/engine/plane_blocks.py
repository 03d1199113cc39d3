"""The blocks of the VQGAN and of the fusion on planes, for Winograd convolutions (see planes.py).

As in strip_blocks.py every runner is built from a module and maps a map to a map; it owns its input.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...networks.codeformer import FuseBlock
from ...networks.vqgan import AttnBlock, Downsample, ResBlock, Upsample
from ...runtime.winograd import channel_groups, winograd_strips
from .planes import Bench, Normed, PlaneConv, PlaneMap, run_conv
from .strip_blocks import in_order


class PlaneRunConv:
    """A 3x3 convolution, after a norm without activation where one stands before it (the tails)."""

    def __init__(self, conv: nn.Conv2d, norm: nn.GroupNorm | None = None):
        self.conv, self.norm = PlaneConv(conv), norm

    def __call__(self, x: PlaneMap, bench: Bench) -> PlaneMap:
        source = x if self.norm is None else Normed(self.norm, False, x)
        out = PlaneMap.take(bench, self.conv.channels, *x.shape[1:])
        run_conv(source, self.conv, out.write, bench)
        x.give(bench)
        return out


class PlaneRunRes:
    """ResBlock of one map, or of two whose channels stand one after the other. The second convolution adds onto the
    input in place where it has the same channels."""

    def __init__(self, block: ResBlock):
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.conv1, self.conv2 = PlaneConv(block.conv1), PlaneConv(block.conv2)
        self.project = None
        if block.conv_out is not None:
            self.project = block.conv_out.weight.detach().flatten(1)
            self.conv2.bias = self.conv2.bias + block.conv_out.bias.detach()

    def __call__(self, x: PlaneMap, bench: Bench) -> PlaneMap:
        out = self.of(bench, x)
        if self.project is not None:
            x.give(bench)
        return out

    def of(self, bench: Bench, *xs: PlaneMap) -> PlaneMap:
        """The result in the place of ``xs[0]`` where nothing is projected, else in a map of its own."""
        h = PlaneMap.take(bench, self.conv1.channels, *xs[0].shape[1:])
        run_conv(Normed(self.norm1, True, *xs), self.conv1, h.write, bench)
        out = PlaneMap(xs[0].planes) if self.project is None else PlaneMap.take(bench, *h.shape)

        def add(planes: Tensor, a: int, part: slice) -> None:
            rows = slice(a, a + planes.shape[1])
            if self.project is None:
                torch.add(planes, out.planes[part, rows], out=planes)
            else:
                before = [x.planes[:, rows].flatten(1) for x in xs]
                weights = self.project[part].split([x.shape[0] for x in xs], 1)
                for x, weight in zip(before, weights):
                    planes.flatten(1).addmm_(weight, x)
            out.write(planes, a, part)

        run_conv(Normed(self.norm2, True, h), self.conv2, add, bench)
        h.give(bench)
        return out


class PlaneRunAttn:
    """AttnBlock: small maps only, so the whole map at once, on every core that torch has."""

    def __init__(self, block: AttnBlock):
        self.norm = block.norm
        self.weights = [(p.weight.detach().flatten(1), p.bias.detach()[:, None]) for p in (block.q, block.k, block.v)]
        self.out = block.proj_out.weight.detach().flatten(1), block.proj_out.bias.detach()[:, None]

    def __call__(self, x: PlaneMap, bench: Bench) -> PlaneMap:
        channels, height, width = x.shape
        h = torch.empty(x.shape)
        Normed(self.norm, False, x).fill(h, 0, height, 0)
        flat = h.view(channels, -1)
        q, k, v = (torch.addmm(bias, weight, flat).t()[None, None] for weight, bias in self.weights)
        h = F.scaled_dot_product_attention(q, k, v)[0, 0]
        out = PlaneMap(x.planes)
        out.write(torch.addmm(self.out[1], self.out[0], h.t()).view(x.shape) + x.planes, 0, slice(0, channels))
        return out


class PlaneRunDown:
    """Downsample: stride 2, one row and column of zeros right and below."""

    def __init__(self, block: Downsample):
        self.weight, self.bias = block.conv.weight.detach(), block.conv.bias.detach()

    def __call__(self, x: PlaneMap, bench: Bench) -> PlaneMap:
        channels, height, width = x.shape
        out = PlaneMap.take(bench, len(self.weight), height // 2, width // 2)

        def convolve_part(job: tuple[tuple[int, int], slice]) -> None:
            (a, b), part = job
            rows = x.planes[:, 2 * a : 2 * b + 1]
            padded = F.pad(rows, (0, 1, 0, 2 * (b - a) + 1 - rows.shape[1]))[None]
            out.write(F.conv2d(padded, self.weight[part], self.bias[part], 2)[0], a, part)

        cuts = winograd_strips(height // 2, width, 3 * channels)
        groups = channel_groups(len(self.weight), bench.workers.count if len(cuts) < bench.workers.count else 1)
        bench.workers.run(convolve_part, [(cut, part) for cut in cuts for part in groups])
        x.give(bench)
        return out


class PlaneRunUp:
    """Upsample: nearest neighbour and a 3x3 convolution. Strips are enlarged in the cache, never the whole map."""

    def __init__(self, block: Upsample):
        self.conv = PlaneConv(block.conv)

    def __call__(self, x: PlaneMap, bench: Bench) -> PlaneMap:
        channels, height, width = x.shape
        out = PlaneMap.take(bench, self.conv.channels, 2 * height, 2 * width)
        run_conv(_Enlarged(x), self.conv, out.write, bench)
        x.give(bench)
        return out


class _Enlarged:
    """A map at twice its size by nearest neighbour, as a source of strips."""

    def __init__(self, x: PlaneMap):
        self.x = x

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.x.shape
        return channels, 2 * height, 2 * width

    def fill(self, out: Tensor, a: int, b: int, reach: int, channels: slice = slice(None)) -> None:
        low, high = (a - reach) // 2, -(-(b + reach) // 2)  # rows of the small map, some outside of it
        small = out.new_empty(out.shape[0], high - low, self.x.shape[2])
        self.x.fill(small, low, high, 0, channels)
        large = F.interpolate(small[None], scale_factor=2.0, mode="nearest")[0]
        first = a - reach - 2 * low
        out.copy_(large[:, first : first + out.shape[1]])


class PlaneRunFuse:
    """Controllable feature transformation: dec + w * (dec * scale + shift), in place on dec."""

    def __init__(self, block: FuseBlock):
        self.encode = PlaneRunRes(block.encode_enc)
        (scale, _, scale_out), (shift, _, shift_out) = block.scale, block.shift
        self.slope = block.scale[1].negative_slope
        self.scale = PlaneConv(scale), PlaneConv(scale_out)
        self.shift = PlaneConv(shift), PlaneConv(shift_out)

    def __call__(self, enc: Tensor, dec: PlaneMap, w: float | Tensor, bench: Bench) -> PlaneMap:
        """enc [C,H,W] is left as it is."""
        seen = PlaneMap(enc.float().contiguous()).measure(bench)
        h = self.encode.of(bench, seen, dec)
        scale, between = (PlaneMap.take(bench, *dec.shape) for _ in range(2))
        self._first(h, self.scale[0], between, bench)
        run_conv(between, self.scale[1], lambda y, a, part: _put(scale, y, a, part), bench)
        self._first(h, self.shift[0], between, bench)
        out = PlaneMap(dec.planes)

        def modulate(shift: Tensor, a: int, part: slice) -> None:
            rows = slice(a, a + shift.shape[1])
            before = dec.planes[part, rows]
            out.write(shift.addcmul_(scale.planes[part, rows], before).mul_(w).add_(before), a, part)

        run_conv(between, self.shift[1], modulate, bench)
        for m in (h, scale, between):
            m.give(bench)
        return out

    def _first(self, h: PlaneMap, conv: PlaneConv, out: PlaneMap, bench: Bench) -> None:
        run_conv(h, conv, lambda y, a, part: _put(out, F.leaky_relu_(y, self.slope), a, part), bench)


def _put(out: PlaneMap, planes: Tensor, a: int, part: slice) -> None:
    """Rows whose moments nobody asks for."""
    out.planes[part, a : a + planes.shape[1]] = planes


def compile_planes(blocks: nn.ModuleList) -> list:
    """A runner for every block, at the same index."""
    kinds = {ResBlock: PlaneRunRes, AttnBlock: PlaneRunAttn, Downsample: PlaneRunDown, Upsample: PlaneRunUp}
    return in_order(blocks, PlaneRunConv, lambda block: kinds[type(block)](block))
