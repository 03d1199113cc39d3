"""Networks without weights: shapes on the meta device, to be filled from a file."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# Methods by which modules give their parameters initial values.
_INITIAL = {"normal_", "uniform_", "trunc_normal_", "zero_", "fill_"}


class _NoValues(TorchFunctionMode):
    """Leaves out initial values. On the meta device they mean nothing, and drawing normal ones there has torch import
    its compiler: 1.5 seconds and 200 MB (torch 2.14)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        if getattr(func, "__name__", "") in _INITIAL and args and args[0].is_meta:
            return args[0]
        return func(*args, **kwargs)


@contextmanager
def skeletons() -> Iterator[None]:
    """Modules that are built within have shapes only."""
    with torch.device("meta"), _NoValues():
        yield
