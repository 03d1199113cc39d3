"""CUDA graphs: a pass recorded once for each batch size and replayed without the host launching every kernel.

A graph reads and writes fixed addresses. So inputs are copied into buffers of its own, results are copied out of them,
and a graph whose weights have moved since (a host that offloads models) is recorded anew instead of being replayed.
"""
from __future__ import annotations

import warnings
from collections import OrderedDict
from dataclasses import dataclass
from typing import Callable, Hashable, Protocol

import torch
from torch import Tensor

from ...errors import first_line
from ...runtime.memory import is_out_of_memory

MOST_GRAPHS = 4  # kept at a time, the least used goes first: each holds the memory of its pass

Function = Callable[..., tuple[Tensor, ...]]


class Recorder(Protocol):
    """How a device records: the outputs of ``function``, and what to call to compute them anew in place."""

    def record(self, function: Function, inputs: list[Tensor]) -> tuple[tuple[Tensor, ...], Callable[[], None]]: ...


class CudaRecorder:
    """torch's CUDA graphs, all in one memory pool: they never run at the same time."""

    def __init__(self, device: torch.device):
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()

    def record(self, function: Function, inputs: list[Tensor]) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):
            torch.cuda.synchronize()
            # thread_local: what other threads of a host program do meanwhile is theirs
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                outputs = function(*inputs)
        return outputs, graph.replay


@dataclass(frozen=True)
class _Recorded:
    inputs: list[Tensor]
    outputs: tuple[Tensor, ...]
    replay: Callable[[], None]
    weights: tuple[int, ...]  # addresses


class Graphs:
    """Calls functions of tensors, by replay from the second call of a kind on. Not for several threads at once.

    The first call of a kind runs as ever, so that libraries choose their algorithms outside of a recording and sizes
    that come once cost nothing; the second records. Where that fails everything runs as ever from then on, ``error``
    says why, and a RuntimeWarning does. Memory that runs out while recording is given back, and the error passes:
    callers halve batches.
    """

    def __init__(self, recorder: Recorder, module: torch.nn.Module, most: int = MOST_GRAPHS):
        self._recorder, self._most = recorder, most
        self._module = module
        self._seen: set[Hashable] = set()
        self._recorded: OrderedDict[Hashable, _Recorded] = OrderedDict()
        self.error: str | None = None
        self.replays = 0

    def __len__(self) -> int:
        return len(self._recorded)

    def clear(self) -> None:
        """Give the memory of all graphs back."""
        self._recorded.clear()
        self._seen.clear()

    def __call__(self, name: Hashable, function: Function, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        """``function(*inputs)``; ``name`` and the inputs' shapes tell which recording serves."""
        key = (name, tuple((x.shape, x.dtype, x.stride()) for x in inputs))
        if self.error is not None or key not in self._seen:
            self._seen.add(key)
            return function(*inputs)
        weights = tuple(w.data_ptr() for w in (*self._module.parameters(), *self._module.buffers()))
        found = self._recorded.get(key)
        if found is None or found.weights != weights:
            self._recorded.pop(key, None)
            found = self._record(function, inputs, weights)
            if found is None:
                return function(*inputs)
            self._recorded[key] = found
            while len(self._recorded) > self._most:
                self._recorded.popitem(last=False)
        self._recorded.move_to_end(key)
        for mine, theirs in zip(found.inputs, inputs):
            mine.copy_(theirs)
        found.replay()
        self.replays += 1
        return tuple(output.clone() for output in found.outputs)

    def _record(self, function: Function, inputs: list[Tensor], weights: tuple[int, ...]) -> _Recorded | None:
        own = [torch.empty_like(x).copy_(x) for x in inputs]
        try:
            outputs, replay = self._recorder.record(function, own)
        except (RuntimeError, MemoryError) as error:
            self.clear()
            if is_out_of_memory(error):
                raise
            self.error = first_line(error)
            warnings.warn(f"CUDA graphs are off: {self.error}", RuntimeWarning, stacklevel=4)
            return None
        return _Recorded(own, outputs, replay, weights)
