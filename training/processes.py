"""Sums over the processes of a run, for code that runs inside a forward pass and knows no Fabric.

With one process they return what they are given. With several, every process has to make the same calls in the same
order.
"""
from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def total(value: Tensor) -> Tensor:
    """The sum of ``value`` over all processes."""
    if world_size() == 1:
        return value
    shared = value.clone()
    if dist.get_backend() == "nccl":
        shared = shared.cuda()
    dist.all_reduce(shared)
    return shared.to(value.device)


def mean(value: Tensor) -> Tensor:
    """The mean of ``value`` over all processes."""
    return total(value) / world_size()


@torch.no_grad()
def average_buffers(*modules: nn.Module | None) -> None:
    """Give every process the mean of the floating-point buffers, such as batch statistics of its share of the batch."""
    if world_size() == 1:
        return
    for module in modules:
        for buffer in module.buffers() if module is not None else ():
            if buffer.is_floating_point():
                buffer.copy_(mean(buffer))


def gathered(value: Any) -> list[Any]:
    """``value`` (anything that pickles) of every process, by rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def leave(done: bool) -> None:
    """Part from the other processes before the interpreter ends; does nothing where there is no group.

    A process with gloo's worker threads has ended by SIGABRT now and then, after everything was written; a thread that
    needs the interpreter while it is taken down does that, and destroying the group joins them. After a whole run
    (``done``) all wait for each other first, since the others still read from the store that the first process keeps;
    after an error nobody waits.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    if done:
        dist.barrier()
    dist.destroy_process_group()
