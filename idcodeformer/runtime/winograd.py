"""3x3 convolutions by Winograd's minimal filtering, where torch carries them.

torch's Linux and macOS builds contain NNPACK, whose float32 F(6x6,3x3) takes 64 products where the sum as written takes
324 (Lavin & Gray 2016, "Fast Algorithms for Convolutional Neural Networks"). The operator is private: it is compared
with F.conv2d before it is trusted, and F.conv2d serves where it is missing or off.
"""
from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from .workers import Workers

TILE = 6  # output rows and columns of one Winograd tile
# Of a strip's input and output as transformed: more leaves the cache, in lower strips the weights are transformed again
# too often.
STRIP_BYTES = 16 << 20
_TILE_BYTES = 8 * 8 * 4  # of one channel of one tile, transformed
_LEAST_PIXELS = 24 * 24  # of a map; below that transforming the weights costs more than it saves
_LEAST_CHANNELS = 8  # of the input; the transforms of few channels cost more than their products
_MOST_ERROR = 1e-3  # for sums of about 1; F(6x6,3x3) rounds to about 1e-4, a wrong operator is far off


@lru_cache(maxsize=1)
def winograd_available() -> bool:
    """Whether this torch computes Winograd convolutions here. Asked once for each process."""
    if not hasattr(torch, "_nnpack_spatial_convolution"):
        return False
    try:
        if not torch.backends.nnpack.is_available():  # this sets the library up, too
            return False
        # NNPACK makes its own threads at its first call, as many as that call's thread has: a worker has one.
        return Workers().run(lambda _: _agrees(torch._nnpack_spatial_convolution), [0])[0]
    except (RuntimeError, TypeError, AttributeError):  # another signature, or a library that does not start
        return False


def _agrees(operator) -> bool:
    """Whether ``operator`` computes F.conv2d's sums on two small tensors, one larger than a tile."""
    random = torch.Generator().manual_seed(1)
    for channels, out_channels, height, width in ((9, 5, 14, 27), (16, 8, 8, 6)):
        x = torch.randn(1, channels, height, width, generator=random)
        weight = torch.randn(out_channels, channels, 3, 3, generator=random) / (9 * channels) ** 0.5
        bias = torch.randn(out_channels, generator=random)
        for pad in ([0, 1], [1, 1]):
            expected, found = F.conv2d(x, weight, bias, 1, pad), operator(x, weight, bias, pad, [1, 1])
            if found.shape != expected.shape or not (found - expected).abs().max() < _MOST_ERROR:
                return False
    return True


def pays(weight: Tensor, height: int, width: int) -> bool:
    """Whether a stride-1 convolution with ``weight`` to a map of this size is faster by Winograd's way."""
    large = weight.shape[1] >= _LEAST_CHANNELS and height * width >= _LEAST_PIXELS
    return large and weight.shape[2:] == (3, 3) and winograd_available()


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, pad: list[int], fast: bool) -> Tensor:
    """F.conv2d(x, weight, bias, 1, pad) of float32 NCHW on the CPU, for a worker. ``fast``: it ``pays`` for the map."""
    if fast:
        return torch._nnpack_spatial_convolution(x, weight, bias, pad, [1, 1])
    return F.conv2d(x, weight, bias, 1, pad)


def winograd_strips(height: int, width: int, channels: int) -> list[tuple[int, int]]:
    """Runs of whole tiles of rows whose transforms, of ``channels`` of input and output together, stay in the cache."""
    tiles = math.ceil(height / TILE)
    count = math.ceil(tiles * math.ceil(width / TILE) * channels * _TILE_BYTES / STRIP_BYTES)
    count = max(1, min(tiles, count))
    edges = [round(i * tiles / count) * TILE for i in range(count)] + [height]
    return list(zip(edges, edges[1:]))


def channel_groups(channels: int, count: int) -> list[slice]:
    """Split channels into at most ``count`` nearly equal runs."""
    count = max(1, min(count, channels))
    edges = [round(i * channels / count) for i in range(count + 1)]
    return [slice(a, b) for a, b in zip(edges, edges[1:])]


class Winograd(TorchFunctionMode):
    """``with Winograd():`` modules that know nothing of it run their 3x3 convolutions that way, on the CPU in float32.

    Only for the calling thread and the length of the block; other convolutions, devices and dtypes are as ever, and so
    is everything where torch lacks the operator. Gradients pass, second ones do not. Kept for later, it keeps its
    threads and their scratch memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self._workers: Workers | None = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.conv2d:
            call = _arguments(*args, **(kwargs or {}))
            if call is not None:
                return self._convolve(*call)
        return func(*args, **(kwargs or {}))

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, pad: list[int]) -> Tensor:
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
            return _Convolution.apply(x, weight, bias, pad, self)
        return self.run(x, weight, bias, pad)

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None, pad: list[int]) -> Tensor:
        """Without a gradient: strips, or several small pictures, side by side in threads."""
        if self._workers is None or self._workers.asked != torch.get_num_threads():
            self._workers = Workers()
        x, weight = x.detach(), weight.detach().contiguous()
        bias = None if bias is None else bias.detach()
        height, width = x.shape[2] + 2 * pad[0] - 2, x.shape[3] + 2 * pad[1] - 2
        out = x.new_empty(x.shape[0], weight.shape[0], height, width)
        fast = pays(weight, height, width)
        cuts = winograd_strips(height, width, weight.shape[0] + weight.shape[1])
        together = max(1, int(self._pictures(height, width, weight))) if len(cuts) == 1 else 1

        def piece(job: tuple[int, tuple[int, int]]) -> None:
            first, (a, b) = job
            rows = x[first : first + together, :, max(0, a - pad[0]) : max(0, b - pad[0] + 2)]
            above, below = max(0, pad[0] - a), max(0, b - pad[0] + 2 - x.shape[2])
            if above or below:
                rows = F.pad(rows, (0, 0, above, below))
            out[first : first + together, :, a:b] = convolve(rows, weight, bias, [0, pad[1]], fast)

        self._workers.run(piece, [(first, cut) for first in range(0, len(x), together) for cut in cuts])
        return out

    def _pictures(self, height: int, width: int, weight: Tensor) -> float:
        """How many small pictures are transformed within the strip's size."""
        tiles = math.ceil(height / TILE) * math.ceil(width / TILE)
        return STRIP_BYTES / (tiles * (weight.shape[0] + weight.shape[1]) * _TILE_BYTES)


def fast_convolutions(device: torch.device) -> AbstractContextManager:
    """What suits the device: ``Winograd`` on a CPU that has it, nothing elsewhere. May be entered again and again."""
    return Winograd() if device.type == "cpu" and winograd_available() else nullcontext()


def _arguments(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None, list[int]] | None:  # fmt: skip
    """The arguments of F.conv2d as those of a Winograd convolution; None where it is none, or does not pay."""
    if input.ndim != 4 or groups != 1 or isinstance(padding, str) or _autocast():
        return None
    pad = _pair(padding)
    plain = _pair(stride) == [1, 1] and _pair(dilation) == [1, 1] and max(pad) <= 2
    here = all(t is None or (t.device.type == "cpu" and t.dtype == torch.float32) for t in (input, weight, bias))
    if plain and here and pays(weight, input.shape[2] + 2 * pad[0] - 2, input.shape[3] + 2 * pad[1] - 2):
        return input, weight, bias, pad
    return None


def _autocast() -> bool:
    try:
        return torch.is_autocast_enabled("cpu")
    except TypeError:  # before torch 2.4
        return torch.is_autocast_cpu_enabled()


def _pair(value: Any) -> list[int]:
    return [int(value)] * 2 if isinstance(value, int) else [int(v) for v in value]


class _Convolution(torch.autograd.Function):
    """The gradient to the input is a Winograd convolution with turned weights, that to the weights torch's own."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, pad: list[int], mode: Winograd) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.pad, ctx.mode, ctx.biases = pad, mode, None if bias is None else list(bias.shape)
        return mode.run(x, weight, bias, pad)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad[:3]
        gx = gw = gb = None
        if to_x:
            turned = weight.flip(2, 3).transpose(0, 1)
            gx = ctx.mode.run(gradient, turned, None, [2 - p for p in ctx.pad])
        if to_weight or to_bias:
            mask = [False, to_weight, to_bias]
            _, gw, gb = torch.ops.aten.convolution_backward(
                gradient, x, weight, ctx.biases, [1, 1], ctx.pad, [1, 1], False, [0, 0], 1, mask
            )
        return gx, gw, gb, None, None
