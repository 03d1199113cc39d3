"""Convolution networks on the CPU, a strip of rows at a time.

A 512-px feature map is larger than any cache, and large tensors are handed back to the system after every layer, which
then clears the pages again for the next one. Here a layer works on strips of a few rows that stay in the cache: norm,
SiLU and convolution touch memory once, scratch is small and reused, and nothing global (allocator, flags) is changed.
Statistics of the next GroupNorm are gathered from every strip while it is still in the cache, with the mean taken out
first and strips merged in float64 (Chan, Golub & LeVeque 1983), so they are more accurate than a single pass.

A map is [H,W,C], contiguous: what torch calls channels_last. Everything here is inference only.
"""
from __future__ import annotations

import math
from functools import lru_cache
from typing import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIP_BYTES = 4 << 20  # of input per strip: large enough to keep every core busy, small enough for a shared cache


@lru_cache(maxsize=1)
def _onednn_ops():
    """torch's own fused oneDNN operators, or None where this build lacks them: the same sums through F.conv2d then."""
    ops = torch.ops.mkldnn
    names = ("_reorder_convolution_weight", "_convolution_pointwise", "_convolution_pointwise_")
    present = torch.backends.mkldnn.is_available() and all(hasattr(ops, name) for name in names)
    return ops if present and _agrees(ops) else None


def _agrees(ops) -> bool:
    """Whether the operators take these arguments and compute F.conv2d's sums: they are private, and may change."""
    x = (torch.arange(120.0).reshape(1, 4, 6, 5) % 7 - 3).to(memory_format=torch.channels_last)
    weight, bias = torch.arange(108.0).reshape(3, 4, 3, 3) % 5 - 2, torch.tensor([0.5, -1.0, 2.0])
    expected = F.conv2d(x, weight, bias, 1, [0, 1])
    try:
        packed = _pack(ops, weight, [0, 1], [1, 1])
        single = _convolve(ops, x, packed, bias, [0, 1], [1, 1])
        added = torch.ones_like(expected).contiguous(memory_format=torch.channels_last)
        _convolve_add(ops, added, x, packed, bias, [0, 1], [1, 1])
    except (RuntimeError, TypeError, AttributeError):  # no such operator, or another signature: F.conv2d serves
        return False
    pairs = ((single, expected), (added, expected + 1))
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-3) for a, b in pairs)


def _pack(ops, weight: Tensor, pad: list[int], stride: list[int]) -> Tensor:
    return ops._reorder_convolution_weight(weight, pad, stride, [1, 1], 1, None)


def _convolve(ops, x: Tensor, weight: Tensor, bias: Tensor, pad: list[int], stride: list[int]) -> Tensor:
    return ops._convolution_pointwise(x, weight, bias, pad, stride, [1, 1], 1, "none", [], None)


def _convolve_add(ops, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, pad: list[int], stride: list[int]) -> None:
    add = ("add", 1.0, None, [], None)
    ops._convolution_pointwise_.binary(out, x, weight, bias, pad, stride, [1, 1], 1, *add)


def as_nchw(rows: Tensor) -> Tensor:
    """[H,W,C] -> the same memory as [1,C,H,W] channels_last."""
    return rows.permute(2, 0, 1).unsqueeze(0)


def as_rows(x: Tensor) -> Tensor:
    """[1,C,H,W] -> [H,W,C], without a copy where x is channels_last."""
    return x[0].permute(1, 2, 0)


def strips(height: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Split ``height`` rows into nearly equal runs of about STRIP_BYTES."""
    count = max(1, math.ceil(height * row_bytes / STRIP_BYTES))
    edges = [round(i * height / count) for i in range(count + 1)]
    return ((a, b) for a, b in zip(edges, edges[1:]) if b > a)


class Scratch:
    """A pool of flat buffers, so that a forward pass reuses memory that is already mapped.

    A request takes the smallest free buffer that fits. Where none fits, the largest free one is dropped for a bigger
    one: the pool settles at the largest set of maps alive at the same time.
    """

    def __init__(self) -> None:
        self._free: list[Tensor] = []
        self._used: dict[int, Tensor] = {}

    @property
    def nbytes(self) -> int:
        return sum(b.numel() for b in (*self._free, *self._used.values()))

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor. Give it back with ``give``."""
        size = math.prod(shape) * dtype.itemsize
        fitting = [b for b in self._free if b.numel() >= size]
        if fitting:
            buffer = min(fitting, key=Tensor.numel)
            self._free = [b for b in self._free if b is not buffer]
        else:
            if self._free:
                largest = max(self._free, key=Tensor.numel)
                self._free = [b for b in self._free if b is not largest]
                del largest
            buffer = torch.empty(size, dtype=torch.uint8)
        view = buffer[:size].view(dtype).view(shape)
        self._used[view.data_ptr()] = buffer
        return view

    def give(self, tensor: Tensor) -> None:
        self._free.append(self._used.pop(tensor.data_ptr()))


class Moments:
    """Per-channel mean and variance of a map, merged from its strips."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, Tensor, Tensor]] = []

    def add(self, rows: Tensor) -> None:
        """Account for rows [h,W,C]."""
        mean, var = torch.ops.aten.batch_norm_update_stats(as_nchw(rows), None, None, 0.0)
        self._parts.append((rows.shape[0] * rows.shape[1], mean, var))

    def affine(self, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
        """The float32 scale and shift [C] that GroupNorm amounts to for this map."""
        return group_affine(norm, *merge_moments(self._parts))


def merge_moments(parts: list[tuple[int, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Parts of a map as (pixels, mean [C], variance [C]) -> float64 mean and variance [C] of the whole."""
    count = torch.tensor([n for n, _, _ in parts], dtype=torch.float64)[:, None]
    means = torch.stack([m for _, m, _ in parts]).double()
    variances = torch.stack([v for _, _, v in parts]).double()
    mean = (count * means).sum(0) / count.sum()
    return mean, (count * (variances + (means - mean).square())).sum(0) / count.sum()


def group_affine(norm: nn.GroupNorm, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift [C], float32, of GroupNorm where channels have this float64 mean and variance [C]."""
    means, variances = mean.view(norm.num_groups, -1), variance.view(norm.num_groups, -1)
    centre = means.mean(1, keepdim=True)
    spread = (variances + (means - centre).square()).mean(1, keepdim=True)
    scale = norm.weight.double().view_as(means) / (spread + norm.eps).sqrt()
    shift = norm.bias.double().view_as(means) - scale * centre
    return scale.flatten().float(), shift.flatten().float()


def cpu_has_bf16() -> bool:
    """Whether this CPU takes bf16 convolutions: oneDNN wants AVX-512 for them, plain layers want nothing."""
    ops = _onednn_ops()
    return ops is None or bool(ops._is_mkldnn_bf16_supported())


class Conv:
    """A convolution with its weights laid out once. Height is never padded: the strip brings its neighbour rows."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, stride: int = 1, pad: int | None = None):
        weight = weight.detach().to(dtype)
        self.bias = bias.detach().to(dtype)
        self.out_channels, self.reach = weight.shape[0], weight.shape[2] // 2
        self.stride, self.pad = [stride, stride], [0, self.reach if pad is None else pad]
        self._ops = _onednn_ops()
        if self._ops is None:
            self.weight = weight.contiguous(memory_format=torch.channels_last)
        else:
            self.weight = _pack(self._ops, weight, self.pad, self.stride)

    @classmethod
    def of(cls, module: nn.Conv2d, dtype: torch.dtype, pad: int | None = None) -> "Conv":
        return cls(module.weight, module.bias, dtype, module.stride[0], pad)

    def __call__(self, rows: Tensor) -> Tensor:
        """[h + 2*reach, W, Cin] -> [h, W, Cout], newly allocated."""
        x = as_nchw(rows)
        if self._ops is None:
            return as_rows(F.conv2d(x, self.weight, self.bias, self.stride, self.pad))
        return as_rows(_convolve(self._ops, x, self.weight, self.bias, self.pad, self.stride))

    def add_to(self, out: Tensor, rows: Tensor) -> None:
        """out [h,W,Cout] += convolution of rows, without a temporary where the operator exists."""
        if self._ops is None:
            out += self(rows)
            return
        _convolve_add(self._ops, as_nchw(out), as_nchw(rows), self.weight, self.bias, self.pad, self.stride)
