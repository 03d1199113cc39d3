"""What is held of the last inputs, so that another fidelity or another way to paste computes only what it changes.

It belongs to the loader's output and goes with it on /free; it also goes when the host takes the restorer's weights off
the compute device, when memory runs out, and where little is free.
"""
from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Sequence

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..idcodeformer.networks.codeformer import CodeState

_MOST = 512 << 20  # bytes: 11 faces through the published network, 400 through the built-in one
_LEAST_FREE = 1 << 30  # bytes; where less is free nothing is held


class Held:
    """Results by what they were made of, the least recently used ones given up first."""

    def __init__(self, most: int = _MOST):
        self._most, self._bytes = most, 0
        self._entries: OrderedDict[Any, tuple[Any, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        return self._bytes

    def get(self, key: Any) -> Any:
        """What is held under ``key``, None where nothing is."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: Any, value: Any, tensors: Sequence[Tensor] = ()) -> None:
        """Hold ``value``, which keeps ``tensors`` alive."""
        size = sum(t.numel() * t.element_size() for t in tensors) + 1000
        if size > self._most:
            return
        if key in self._entries:
            self._bytes -= self._entries.pop(key)[1]
        self._entries[key] = (value, size)
        self._bytes += size
        while self._bytes > self._most:
            self._bytes -= self._entries.popitem(last=False)[1][1]

    def clear(self) -> None:
        self._entries.clear()
        self._bytes = 0

    def make_room(self, device: torch.device) -> None:
        """Give everything up where little memory is free beside it."""
        from ..idcodeformer.runtime.memory import free_bytes

        if len(self) and free_bytes(device) < _LEAST_FREE:
            self.clear()


class HeldStates:
    """The restorer's store of codes and encoder features, by the crop's pixels."""

    def __init__(self, held: Held):
        self._held = held

    def get(self, pixels: Tensor) -> CodeState | None:
        return self._held.get(("codes", digest(pixels)))

    def put(self, pixels: Tensor, state: CodeState) -> None:
        tensors = (state.logits, state.quant, state.lq_feat, *state.features.values())
        self._held.put(("codes", digest(pixels)), state, tensors)


def digest(pixels: Tensor) -> str:
    """Differs where a shape or a value differs."""
    found = hashlib.sha256(f"{tuple(pixels.shape)} {pixels.dtype}".encode())
    found.update(pixels.detach().cpu().contiguous().view(torch.uint8).numpy())
    return found.hexdigest()
