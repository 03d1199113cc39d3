"""Crops -> restored crops, in batches sized to memory."""
from __future__ import annotations

import copy
from pathlib import Path
from typing import Protocol, Sequence

import torch
from torch import Tensor

from ..errors import BadOption
from ..networks.codeformer import CodeFormer, CodeFormerConfig, CodeState
from ..runtime.device import resolve_device
from ..runtime.memory import faces_per_batch, in_batches
from ..runtime.validation import check_crops
from ..types import Progress, RestoreOptions
from .engine.execution import Precision, accelerate


class StateStore(Protocol):
    """Keeps what was encoded; it decides how much, and for how long."""

    def get(self, pixels: Tensor) -> CodeState | None:
        """The state of one crop [1,3,S,S] in [0,1], of batch size 1, or None where it is not kept."""
        ...

    def put(self, pixels: Tensor, state: CodeState) -> None:
        """Offer the state of one crop."""
        ...


class CodeFormerRestorer:
    """Restores aligned faces with a CodeFormer of any size.

    ``restorer(pixels, options)``: pixels [N,3,size,size] RGB in [0,1], FFHQ-aligned -> the same shape, restored, on the
    device of ``pixels``. ``network`` is the nn.Module, ``config`` its numbers, ``size`` the side of its crops in px.
    The restorer works with the weights that ``network`` has when it is made (see engine/execution.py).
    ``precision``: "fp32"; "bf16" or "fp16" for generator and fusion while encoder, Transformer and logits stay fp32 (in
    lower precision other codes win, and another code is another face); "auto" is fp32 on CPU, mixed on CUDA.
    ``in_place``: beyond the CPU ``network`` itself is made mixed and run, with no copy of any weight.
    ``states``: where it is set, a crop whose state it holds goes through neither encoder nor Transformer again.
    """

    def __init__(
        self,
        network: CodeFormer,
        device: torch.device | str | None = None,
        precision: Precision = "auto",
        in_place: bool = False,
    ):
        self.device = resolve_device(device)
        self.network = network.to(self.device).eval()
        self._engine = accelerate(self.network, self.device, precision, in_place)
        self.precision = self._engine.precision
        self._exact: CodeFormerRestorer | None = None
        self.states: StateStore | None = None

    @property
    def config(self) -> CodeFormerConfig:
        """Every number of the network."""
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
        """Restored faces [N,3,S,S] in [0,1].

        Of ``options``, ``w``, ``latent_match`` and ``batch_size`` matter here; ``w`` [N] in [0,1] gives each face its
        own fidelity instead. ``progress(done, total, "restoring")`` is called after each batch and may raise to cancel.
        Raises BadImage, BadOption, and OutOfMemory where not even one face fits.
        """
        options = options or RestoreOptions()
        return self._restore(pixels, [options.w if w is None else _checked(w, len(pixels))], options, progress)[0]

    def sweep(
        self,
        pixels: Tensor,
        ws: Sequence[float],
        options: RestoreOptions | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Restored faces [len(ws),N,3,S,S] at several fidelities; the encoder and the Transformer run once."""
        for w in ws:
            if not 0 <= w <= 1:
                raise BadOption(f"w is {w}; it must lie between 0 and 1.")
        return self._restore(pixels, list(ws), options or RestoreOptions(), progress)

    def exact(self) -> CodeFormerRestorer | None:
        """The same network in fp32, for faces that overflow lower precisions; None where this restorer is that."""
        if self.precision == "fp32":
            return None
        if self._exact is None:
            self._exact = CodeFormerRestorer(copy.deepcopy(self.network).float(), self.device, "fp32")
        return self._exact

    @property
    def decoder(self) -> CodeFormer:
        """The module that decodes, in the precision of this restorer, for passes that need a gradient."""
        return self._engine.module

    def encode(self, pixels: Tensor) -> CodeState:
        """Codes and encoder features of crops [N,3,S,S] in [0,1], on the restorer's device; independent of w."""
        check_crops(pixels, self.size)
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            return self._encode(pixels)

    def _encode(self, pixels: Tensor) -> CodeState:
        """From the store where it has every crop, else by the network; the store is then offered each."""
        if self.states is None or len(pixels) == 0:
            return self._engine.encode(self._signed(pixels))
        crops = pixels.split(1)
        held = [state for state in map(self.states.get, crops) if state is not None]
        if len(held) == len(crops):
            return held[0] if len(held) == 1 else _joined(held, self.device)
        state = self._engine.encode(self._signed(pixels))
        for number, crop in enumerate(crops):
            self.states.put(crop, state if len(crops) == 1 else _one(state, number))
        return state

    def _signed(self, pixels: Tensor) -> Tensor:
        """A copy on the device, in [-1,1]."""
        return pixels.to(self.device, torch.float32, non_blocking=True).mul(2).sub_(1)

    def decode(self, state: CodeState, w: float | Tensor, options: RestoreOptions | None = None) -> Tensor:
        """Restored faces [N,3,S,S] in [0,1] of a state of ``encode`` at fidelity ``w`` (float, or tensor [N])."""
        options = options or RestoreOptions()
        each = _checked(w, len(state.quant)).to(self.device, torch.float32) if isinstance(w, Tensor) else w
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            image = self._engine.decode(state, each, options.latent_match).float()
        return image.clamp(-1, 1).add_(1).mul_(0.5)

    def _restore(
        self, pixels: Tensor, ws: list[float | Tensor], options: RestoreOptions, progress: Progress | None
    ) -> Tensor:
        check_crops(pixels, self.size)
        out = torch.empty(len(ws), *pixels.shape, device=pixels.device)
        batch = options.batch_size or faces_per_batch(self.config, self.device)

        def step(start: int, stop: int) -> None:
            with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
                state = self._encode(pixels[start:stop])
                for i, w in enumerate(ws):
                    each = w[start:stop] if isinstance(w, Tensor) else w
                    out[i, start:stop] = self.decode(state, each, options).to(out.device)

        in_batches(len(pixels), batch, step, progress)
        return out


def _one(state: CodeState, number: int) -> CodeState:
    """The state of one face of a batch, which does not keep the others alive."""
    features = {side: f[number : number + 1].clone() for side, f in state.features.items()}
    parts = (part[number : number + 1].clone() for part in (state.logits, state.quant, state.lq_feat))
    return CodeState(*parts, features)


def _joined(states: Sequence[CodeState], device: torch.device) -> CodeState:
    features = {side: torch.cat([s.features[side] for s in states]).to(device) for side in states[0].features}
    parts = (torch.cat([getattr(s, name) for s in states]).to(device) for name in ("logits", "quant", "lq_feat"))
    return CodeState(*parts, features)


def _checked(w: Tensor, faces: int) -> Tensor:
    """Per-face fidelity: its shape, and its range where that costs no synchronisation."""
    if tuple(w.shape) != (faces,):
        raise BadOption(f"w has shape {list(w.shape)} for {faces} faces; give one value per face.")
    if w.device.type == "cpu" and faces and not bool(((w >= 0) & (w <= 1)).all()):
        raise BadOption(f"w reaches from {float(w.min()):g} to {float(w.max()):g}; it must lie between 0 and 1.")
    return w


def load_restorer(
    name_or_path: str | Path = "mini_id_codeformer",
    device: torch.device | str | None = None,
    precision: Precision = "auto",
    folders: Sequence[str | Path] = (),
) -> CodeFormerRestorer:
    """A restorer from a weight file (.pth or .safetensors) or a name of the registry.

    The embedded networks are ``mini_id_codeformer`` and ``mini_codeformer`` (128 px); the published 512-px network is
    ``codeformer``; ``gfpgan`` and ``restoreformer`` are restorers without fidelity, see ``ForeignRestorer``.
    ``folders`` are searched besides the usual places. Raises MissingWeights, CorruptWeights, UnsupportedWeights,
    NoDevice.
    """
    from ..weights.loading import build
    from ..weights.store import find
    from .registry import restorer_of

    target = resolve_device(device)
    path = find(name_or_path, "restorer", folders)
    return restorer_of(build(path, "restorer"), target, precision)
