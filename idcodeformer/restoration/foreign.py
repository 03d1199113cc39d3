"""GFPGAN and RestoreFormer as restorers: crops -> restored crops, in batches sized to memory, without fidelity."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import BadOption
from ..networks.foreign import restore
from ..runtime.device import cuda_tf32, resolve_device
from ..runtime.memory import faces_per_batch, in_batches
from ..runtime.validation import check_crops
from ..types import Progress, RestoreOptions

_DTYPES = {"auto": torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16}


class ForeignRestorer:
    """Restores aligned faces with a network of ``networks.foreign``; ``w``, ``adain`` and guidance have no meaning.

    ``precision``: "fp32", or "bf16" beyond the CPU; "auto" is fp32. fp16 overflows in these networks.
    """

    has_fidelity = False

    def __init__(
        self,
        network: nn.Module,
        device: torch.device | str | None = None,
        precision: str = "auto",
        in_place: bool = False,
    ):
        self.device = resolve_device(device)
        if precision not in _DTYPES or (precision == "bf16" and self.device.type == "cpu"):
            raise BadOption(f"{type(network).__name__} runs in fp32, and in bf16 on a GPU; precision is {precision}.")
        self.precision = "fp32" if precision == "auto" else precision
        self._dtype = _DTYPES[precision]
        self.network = network.to(self.device, self._dtype).eval().requires_grad_(False)

    @property
    def config(self):
        """Every number of the network, ``img_size`` and ``nf`` among them."""
        return self.network.config

    @property
    def size(self) -> int:
        """Side of the crops in px."""
        return self.config.img_size

    def __call__(
        self,
        pixels: Tensor,
        options: RestoreOptions | None = None,
        progress: Progress | None = None,
        w: Tensor | None = None,
    ) -> Tensor:
        """Restored faces [N,3,S,S] in [0,1] of pixels [N,3,S,S], on their device. ``w`` is ignored.

        Raises BadImage for other shapes, OutOfMemory where not even one face fits.
        """
        check_crops(pixels, self.size)
        out = torch.empty(pixels.shape, device=pixels.device)
        batch = (options or RestoreOptions()).batch_size or faces_per_batch(self.config, self.device)

        def step(start: int, stop: int) -> None:
            x = pixels[start:stop].to(self.device, self._dtype)
            with torch.inference_mode(), torch.autocast(self.device.type, enabled=False), cuda_tf32(False):
                done = restore(self.network, x * 2 - 1).float()
            out[start:stop] = done.clamp(-1, 1).add(1).mul(0.5).to(out.device)

        in_batches(len(pixels), batch, step, progress)
        return out
