"""An upscaler for backgrounds and faces, from any file that spandrel reads."""
from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..errors import BadOption, MissingWeights, UnsupportedWeights
from ..runtime.device import resolve_device
from ..runtime.memory import is_out_of_memory
from ..types import Upscaler

_OVERLAP = 32  # px of input around each tile; seams are cut away with it
_SMALLEST_TILE = 64


class TiledUpscaler:
    """[N,3,H,W] in [0,1] -> [N,3,k*H,k*W] on the input's device; tiles are halved where memory runs out."""

    def __init__(self, network, scale: int, device: torch.device, tile: int = 400):
        self.network, self.scale, self.device, self.tile = network, scale, device, tile

    def __call__(self, images: Tensor) -> Tensor:
        tile = self.tile or max(images.shape[-2:])
        while True:
            try:
                return self._tiled(images, tile)
            except RuntimeError as error:
                if not is_out_of_memory(error) or tile <= _SMALLEST_TILE:
                    raise
            tile = max(tile // 2, _SMALLEST_TILE)

    @torch.inference_mode()
    def _tiled(self, images: Tensor, tile: int) -> Tensor:
        count, channels, height, width = images.shape
        k = self.scale
        out = torch.empty(count, channels, height * k, width * k, device=images.device)
        for y in range(0, height, tile):
            for x in range(0, width, tile):
                y0, x0 = max(y - _OVERLAP, 0), max(x - _OVERLAP, 0)
                y1, x1 = min(y + tile, height), min(x + tile, width)
                part = images[..., y0 : min(y1 + _OVERLAP, height), x0 : min(x1 + _OVERLAP, width)]
                done = self.network(part.to(self.device, torch.float32)).clamp(0, 1).to(out)
                inner = done[..., (y - y0) * k : (y1 - y0) * k, (x - x0) * k : (x1 - x0) * k]
                out[..., y * k : y1 * k, x * k : x1 * k] = inner
        return out


def check_tile(tile: int) -> None:
    """Raises BadOption for a tile that is too small to be worth its overlap."""
    if tile != 0 and tile < _SMALLEST_TILE:
        raise BadOption(f"The tile is {tile} px; it must be at least {_SMALLEST_TILE}, or 0 for none.")


def load_upscaler(name_or_path: str | Path, device: torch.device | str | None = None, tile: int = 400) -> Upscaler:
    """The upscaler of a weight file. Raises BadOption without spandrel, MissingWeights, UnsupportedWeights."""
    from ..weights.store import find

    check_tile(tile)
    target = resolve_device(device)
    name = {"realesrgan": "realesrgan_x2plus"}.get(str(name_or_path), name_or_path)
    path = find(name, "upscaler")
    if not Path(path).is_file():
        raise MissingWeights(f"{path} is not there; give the file of an upscaler.")
    try:
        from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError
    except ImportError as error:
        raise BadOption("An upscaler file needs the spandrel package: pip install spandrel") from error
    try:
        model = ModelLoader(device=target).load_from_file(path)
    except (UnsupportedModelError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error) or type(error).__name__
        raise UnsupportedWeights(f"spandrel cannot read {path} ({reason}); give the file of an upscaler.") from error
    if not isinstance(model, ImageModelDescriptor) or model.input_channels != 3 or model.output_channels != 3:
        raise UnsupportedWeights(f"{path} is no upscaler of RGB pictures; give one, RealESRGAN_x2plus.pth for example.")
    return TiledUpscaler(model.eval(), model.scale, target, tile)
