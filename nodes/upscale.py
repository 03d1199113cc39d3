"""An UPSCALE_MODEL of the graph as the core's upscaler."""
from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator

import torch
from torch import Tensor

from ..idcodeformer.errors import BadOption
from ..idcodeformer.types import Upscaler
from . import host

_TILE, _LEAST_TILE = 512, 128  # px
_BYTES_PER_PIXEL = 384 * 3 * 4  # of a tile, times the scale: the host's own estimate for such models


@contextmanager
def upscaler_of(model: Any) -> Iterator[Upscaler | None]:
    """[N,3,H,W] -> [N,3,k*H,k*W] in tiles on the compute device; smaller tiles where memory runs out. None for None."""
    if model is None:
        yield None
        return
    if not callable(model) or not hasattr(model, "scale"):
        raise BadOption(f"'upscale_model' is a {type(model).__name__}; link the output of Load Upscale Model.")
    device = host.compute_device()
    host.free_memory(int(_TILE**2 * _BYTES_PER_PIXEL * max(1.0, model.scale)), device)
    model.to(device)
    try:
        yield lambda images: _upscale(images.to(device, torch.float32), model).clamp(0, 1)
    finally:
        model.to("cpu")


def _upscale(images: Tensor, model: Any) -> Tensor:
    tile = _TILE
    while True:
        try:
            return host.tiled_upscale(images, model, tile)
        except host.out_of_memory():
            tile //= 2
            if tile < _LEAST_TILE:
                raise
