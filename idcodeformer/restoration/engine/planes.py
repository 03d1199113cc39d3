"""Feature maps as planes [C,H,W] for Winograd convolutions, a strip of rows or a group of channels at a time.

As in strips.py a layer touches memory once: norm and SiLU are applied to the strip that the convolution reads, and the
moments of the result are taken while it is in the cache. Here every operator uses one core, and the strips of a layer
are shared among threads; where a map is too low for a strip each, the threads share its output channels instead.
Weights stay where the module has them: nothing is laid out anew. float32, inference only.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...runtime.winograd import channel_groups, convolve, pays, winograd_strips
from ...runtime.workers import Workers
from .strips import Scratch, group_affine, merge_moments

_FAR = 16.0  # mean squared over variance; up to here the mean square less the mean's square keeps five digits
ALL = slice(None)


class Bench(Scratch):
    """Scratch memory and the threads of one call."""

    def __init__(self) -> None:
        super().__init__()
        self._workers: Workers | None = None

    @property
    def workers(self) -> Workers:
        if self._workers is None or self._workers.asked != torch.get_num_threads():
            self._workers = Workers()
        return self._workers


class PlaneMoments:
    """Per-channel mean and variance of a map, merged from its parts, in whichever order they were added."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, int, int, Tensor, Tensor]] = []

    def add(self, planes: Tensor, row: int, channel: int) -> None:
        """Account for planes [c,h,W] that begin at this row and channel."""
        count = planes.shape[1] * planes.shape[2]
        mean = planes.sum((1, 2)).div_(count)
        var = torch.linalg.vector_norm(planes, dim=(1, 2)).square_().div_(count).addcmul_(mean, mean, value=-1)
        if bool((mean.square() > _FAR * var).any()):  # the difference of large numbers has lost its digits
            spread = torch.linalg.vector_norm(planes - mean[:, None, None], dim=(1, 2))
            var = spread.square_().div_(count)
        self._parts.append((row, channel, count, mean, var))

    def merged(self) -> tuple[Tensor, Tensor]:
        """float64 mean and variance [C] over all parts."""
        strips: dict[int, list] = {}
        for row, _, count, mean, var in sorted(self._parts, key=lambda part: part[:2]):
            strips.setdefault(row, []).append((count, mean, var))
        parts = [(p[0][0], torch.cat([m for _, m, _ in p]), torch.cat([v for _, _, v in p])) for p in strips.values()]
        return merge_moments(parts)


@dataclass
class PlaneMap:
    """A feature map [C,H,W], and the moments of its channels."""

    planes: Tensor
    moments: PlaneMoments = field(default_factory=PlaneMoments)

    @classmethod
    def take(cls, bench: Bench, channels: int, height: int, width: int) -> "PlaneMap":
        return cls(bench.take((channels, height, width), torch.float32))

    @classmethod
    def load(cls, bench: Bench, chw: Tensor) -> "PlaneMap":
        """A copy of [C,H,W] in scratch memory, without moments."""
        planes = bench.take(tuple(chw.shape), torch.float32)
        planes.copy_(chw)
        return cls(planes)

    @property
    def chw(self) -> Tensor:
        return self.planes

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.planes.shape)

    def give(self, bench: Bench) -> None:
        bench.give(self.planes)

    def measure(self, bench: Bench) -> "PlaneMap":
        """Take the moments of a map that came without."""
        channels, height, width = self.shape
        cuts = winograd_strips(height, width, 2 * channels)
        bench.workers.run(lambda cut: self.moments.add(self.planes[:, cut[0] : cut[1]], cut[0], 0), cuts)
        return self

    def write(self, planes: Tensor, a: int, channels: slice) -> None:
        """Rows from ``a`` on of these channels, and their moments."""
        self.planes[channels, a : a + planes.shape[1]] = planes
        self.moments.add(planes, a, channels.start or 0)

    def fill(self, out: Tensor, a: int, b: int, reach: int, channels: slice = ALL) -> None:
        """out [c, b-a + 2*reach, W] = rows a-reach .. b+reach, zeros outside of the map."""
        inner(out, self.planes[channels], a, b, reach, lambda rows, into: into.copy_(rows))


def inner(
    out: Tensor, planes: Tensor, a: int, b: int, reach: int, transform: Callable[[Tensor, Tensor], object]
) -> None:
    """``transform(rows, into)`` for the rows that the map has, zeros for those it has not: a convolution's padding."""
    height = planes.shape[1]
    first, last = max(0, a - reach), min(height, b + reach)
    top = first - (a - reach)
    if top:
        out[:, :top].zero_()
    if top + last - first < out.shape[1]:
        out[:, top + last - first :].zero_()
    transform(planes[:, first:last], out[:, top : top + last - first])


class Source(Protocol):
    """What a convolution reads: a map, or a map behind a norm."""

    @property
    def shape(self) -> tuple[int, int, int]: ...

    def fill(self, out: Tensor, a: int, b: int, reach: int, channels: slice = ALL) -> None: ...


class Normed:
    """GroupNorm, then SiLU where asked, of one or two maps (their channels one after the other)."""

    def __init__(self, norm: nn.GroupNorm, silu: bool, *maps: PlaneMap):
        self.maps, self.silu = maps, silu
        merged = [m.moments.merged() for m in maps]
        affine = group_affine(norm, torch.cat([m for m, _ in merged]), torch.cat([v for _, v in merged]))
        self.scale, self.shift = (t[:, None, None] for t in affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        return (sum(m.shape[0] for m in self.maps), *self.maps[0].shape[1:])

    def fill(self, out: Tensor, a: int, b: int, reach: int, channels: slice = ALL) -> None:
        start, stop, _ = channels.indices(self.shape[0])
        first = 0
        for m in self.maps:
            low, high = max(start, first), min(stop, first + m.shape[0])
            if low < high:
                scale, shift = self.scale[low:high], self.shift[low:high]
                planes = m.planes[low - first : high - first]

                def transform(rows: Tensor, into: Tensor, scale: Tensor = scale, shift: Tensor = shift) -> None:
                    torch.mul(rows, scale, out=into).add_(shift)
                    if self.silu:
                        F.silu(into, inplace=True)

                inner(out[low - start : high - start], planes, a, b, reach, transform)
            first += m.shape[0]


class PlaneConv:
    """A stride-1 convolution of planes with the module's own weights. Height is never padded here: strips are."""

    def __init__(self, conv: nn.Conv2d):
        self.weight, self.bias = conv.weight.detach().float().contiguous(), conv.bias.detach().float()
        self.channels, self.reach = conv.out_channels, conv.kernel_size[0] // 2

    def __call__(self, x: Tensor, fast: bool, channels: slice = ALL) -> Tensor:
        """[Cin, h + 2*reach, W] -> [c, h, W] of these output channels, newly allocated. ``fast``: by Winograd's way."""
        return convolve(x[None], self.weight[channels], self.bias[channels], [0, self.reach], fast)[0]


Use = Callable[[Tensor, int, slice], None]


def run_conv(source: Source, conv: PlaneConv, use: Use, bench: Bench) -> None:
    """Convolve all of ``source``; ``use(planes [c,h,W], first row, channels)`` takes every part, in a worker."""
    channels, height, width = source.shape
    workers, fast = bench.workers, pays(conv.weight, height, width)

    def read(a: int, b: int) -> Tensor:
        return torch.empty(channels, b - a + 2 * conv.reach, width)

    def strip(cut: tuple[int, int]) -> None:
        x = read(*cut)
        source.fill(x, *cut, conv.reach)
        use(conv(x, fast), cut[0], slice(0, conv.channels))

    def shared(a: int, b: int) -> None:
        x = read(a, b)
        workers.run(lambda part: source.fill(x[part], a, b, conv.reach, part), channel_groups(channels, workers.count))
        workers.run(lambda part: use(conv(x, fast, part), a, part), channel_groups(conv.channels, workers.count))

    cuts = winograd_strips(height, width, channels + conv.channels)
    if workers.count == 1 or len(cuts) >= workers.count:
        workers.run(strip, cuts)
    else:
        for cut in cuts:
            shared(*cut)
