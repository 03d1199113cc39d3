"""Fast inference: the same network, run in the way that suits the device.

``accelerate(network, device, precision)`` reads the weights of a ``CodeFormer`` once and returns an ``Engine``. The
module is not changed, so training and export see standard weights, and no global state is (allocator, default dtype,
threads), so an engine is safe inside another program.

Precision. A code that changes is a face that changes, and rounding upstream of the codes does change them, so encoder,
Transformer and logits always run in float32. "bf16" and "fp16" concern generator and fusion only.
"""
from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import Iterator, Literal

import torch
from torch import Tensor, nn

from ...errors import BadOption
from ...networks.codeformer import CodeFormer, CodeState, FuseBlock, adain_codes
from ...runtime.device import cuda_tf32, resolve_device
from ...runtime.skeleton import skeletons
from ...runtime.winograd import winograd_available
from .graphs import Function, Graphs, Recorder
from .plane_blocks import PlaneRunFuse, compile_planes
from .planes import Bench, PlaneMap
from .strip_blocks import Map, RunFuse, compile_blocks
from .strips import cpu_has_bf16

Precision = Literal["auto", "fp32", "bf16", "fp16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(device: torch.device | str, precision: Precision = "auto") -> Precision:
    """What "auto" means on a device: on CUDA bf16 where it is native, else fp16; elsewhere fp32.

    On a CPU bf16 pays only where it is native (AVX512-BF16, AMX), so it is left to who asks for it. Raises BadOption
    for an unknown name, for fp16 on the CPU, where it is slower than fp32, and for bf16 on a CPU that lacks it.
    """
    kind = torch.device(device).type
    if precision == "auto":
        if kind != "cuda":
            return "fp32"
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    if precision not in _DTYPES:
        raise BadOption(f"precision is {precision!r}; use auto, {', '.join(_DTYPES)}.")
    if precision == "fp16" and kind == "cpu":
        raise BadOption("precision fp16 needs a GPU; on the CPU use bf16 or fp32.")
    if precision == "bf16" and kind == "cpu" and not cpu_has_bf16():
        raise BadOption("precision bf16 needs AVX-512, which this CPU lacks; use auto or fp32.")
    return precision


def accelerate(
    network: CodeFormer,
    device: torch.device | str | None = None,
    precision: Precision = "auto",
    in_place: bool = False,
) -> "Engine":
    """An engine with the weights that ``network`` has now; build another after changing them.

    device: where to run; None = where the network is. precision: see the module's text. ``in_place``: beyond the CPU
    the engine runs ``network`` itself, made ``mixed``, so that who moves it moves all there is. Raises NoDevice,
    BadOption.
    """
    device = network.position_emb.device if device is None else resolve_device(device)
    precision = choose_precision(device, precision)
    if device.type == "cpu":
        return StripEngine(network, device, precision)
    return ModuleEngine(network, device, precision, in_place=in_place)


def mixed(network: CodeFormer, precision: Precision) -> CodeFormer:
    """``network`` itself with generator and fusion in the dtype of ``precision``, channels_last; idempotent."""
    dtype = _DTYPES[precision]
    if dtype != torch.float32:
        for part in (network.generator, network.fuse_convs_dict):
            part.to(dtype=dtype, memory_format=torch.channels_last)
    return network


class Engine:
    """``encode``, ``decode`` and the whole pass, inference only. Inputs may lie anywhere, results lie on ``device``."""

    def __init__(self, network: CodeFormer, device: torch.device, precision: Precision):
        self.config = network.config
        self.device = device
        self.precision = precision
        self.dtype = _DTYPES[precision]
        self._network = network

    def encode(self, x: Tensor) -> CodeState:
        """[N,3,S,S] in [-1,1] -> codes and encoder features, float32; independent of w."""
        raise NotImplementedError

    def decode(self, state: CodeState, w: float | Tensor = 0.5, adain: bool = False) -> Tensor:
        """Image [N,3,S,S] float32, about [-1,1], at fidelity ``w`` (float, or tensor [N]). w = 0 computes no fusion."""
        raise NotImplementedError

    def __call__(self, x: Tensor, w: float | Tensor = 0.5, adain: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """As the network's own call: (image, logits, lq_feat)."""
        state = self.encode(x)
        return self.decode(state, w, adain), state.logits, state.lq_feat

    @property
    def module(self) -> CodeFormer:
        """The network that this engine runs, for a pass with a gradient; generator and fusion are in ``dtype``."""
        return self._network

    @property
    def scratch_bytes(self) -> int:
        """Bytes kept between calls besides the weights."""
        return 0

    def release(self) -> None:
        """Give scratch memory back. The engine stays usable."""


def _per_face(w: float | Tensor, count: int) -> list[float | Tensor]:
    return list(w.expand(count)) if isinstance(w, Tensor) else [w] * count


class StripEngine(Engine):
    """The CPU: faces one after another (a batch gains nothing there), layers in strips that stay in the cache.

    float32 parts run as planes where torch has a Winograd convolution (planes.py), everything else as rows (strips.py).
    """

    def __init__(self, network: CodeFormer, device: torch.device, precision: Precision):
        super().__init__(network, device, precision)
        if network.position_emb.device != device:
            network = copy.deepcopy(network).to(device)
        self._network = network
        sides = network.config.connect_list
        with torch.inference_mode():
            self._encoder = _Layout(torch.float32)
            self._generator = _Layout(self.dtype)
            self._encoder_blocks = self._encoder.compile(network.encoder.blocks)
            self._generator_blocks = self._generator.compile(network.generator.blocks)
            self._fuse = {s: self._generator.fuse(network.fuse_convs_dict[str(s)]) for s in sides}
        self._enc_taps = {i: s for s, i in network.encoder.taps.items() if s in sides}
        self._gen_taps = {i: s for s, i in network.generator.taps.items() if s in sides}
        self._idle: list[Bench] = []

    @torch.inference_mode()
    def encode(self, x: Tensor) -> CodeState:
        cfg, n = self.config, len(x)
        lq_feat = torch.empty(n, cfg.emb_dim, cfg.latent_side, cfg.latent_side)
        shapes = {s: (n, cfg.channels_at(s), s, s) for s in self._enc_taps.values()}
        form = self._generator.memory_format
        features = {s: torch.empty(shape, memory_format=form) for s, shape in shapes.items()}
        with self._scratch() as scratch:
            for i, face in enumerate(x.to("cpu", torch.float32)):
                self._encode_one(face, lq_feat[i], {s: f[i] for s, f in features.items()}, scratch)
        logits = self._network.predict(lq_feat)
        return CodeState(logits, self._network.select(logits), lq_feat, features)

    def _encode_one(self, x: Tensor, lq_feat: Tensor, features: dict[int, Tensor], scratch: Bench) -> None:
        """Fills ``lq_feat`` and ``features``; scratch memory is reused, so what the caller keeps is copied out."""
        m = self._encoder.load(scratch, x)
        for i, run in enumerate(self._encoder_blocks):
            if run is not None:
                m = run(m, scratch)
            if i in self._enc_taps:
                features[self._enc_taps[i]].copy_(m.chw)
        lq_feat.copy_(m.chw)
        m.give(scratch)

    @torch.inference_mode()
    def decode(self, state: CodeState, w: float | Tensor = 0.5, adain: bool = False) -> Tensor:
        codes = adain_codes(state) if adain else state.quant
        n, side = codes.shape[0], self.config.img_size
        out = torch.empty(n, 3, side, side)
        with self._scratch() as scratch:
            for i, weight in enumerate(_per_face(w, n)):
                fuse = isinstance(weight, Tensor) or weight > 0
                features = {s: f[i] for s, f in state.features.items()} if fuse else {}
                self._decode_one(codes[i], features, weight, out[i], scratch)
        return out

    def _decode_one(
        self, codes: Tensor, features: dict[int, Tensor], w: float | Tensor, out: Tensor, scratch: Bench
    ) -> None:
        m = self._generator.load(scratch, codes)
        for i, run in enumerate(self._generator_blocks):
            if run is not None:
                m = run(m, scratch)
            side = self._gen_taps.get(i)
            if side in features:
                m = self._fuse[side](features[side], m, w, scratch)
        out.copy_(m.chw)
        m.give(scratch)

    @contextmanager
    def _scratch(self) -> Iterator[Bench]:
        """Scratch memory of one call: threads never share it, and a call that fails drops it."""
        try:
            scratch = self._idle.pop()  # one step: after a separate look another thread may have emptied the list
        except IndexError:
            scratch = Bench()
        yield scratch
        self._idle.append(scratch)

    @property
    def scratch_bytes(self) -> int:
        return sum(scratch.nbytes for scratch in self._idle)

    def release(self) -> None:
        self._idle.clear()


class _Layout:
    """How the maps of one part of the network lie in memory, and the runners for that."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self.planes = dtype == torch.float32 and winograd_available()
        self.memory_format = torch.contiguous_format if self.planes else torch.channels_last

    def compile(self, blocks: nn.ModuleList) -> list:
        return compile_planes(blocks) if self.planes else compile_blocks(blocks, self.dtype)

    def fuse(self, block: FuseBlock) -> RunFuse | PlaneRunFuse:
        return PlaneRunFuse(block) if self.planes else RunFuse(block, self.dtype)

    def load(self, scratch: Bench, chw: Tensor) -> Map | PlaneMap:
        return PlaneMap.load(scratch, chw) if self.planes else Map.load(scratch, chw, self.dtype)


class ModuleEngine(Engine):
    """CUDA and MPS: the modules themselves, channels_last, whole batches, nothing that makes the host wait.

    Weights are shared with the network where device and dtype agree; generator and fusion get copies below fp32.
    ``in_place`` there is no copy at all: see ``accelerate``.
    ``tf32`` lets CUDA round the encoder's factors to 10 bits, torch's default. Here it is off: codes would change.
    ``recorder`` turns CUDA graphs on, see ``graphs.py``: for callers that come with the same batch sizes again and
    again, one thread at a time.
    """

    def __init__(
        self,
        network: CodeFormer,
        device: torch.device,
        precision: Precision,
        tf32: bool = False,
        in_place: bool = False,
        recorder: Recorder | None = None,
    ):
        super().__init__(network, device, precision)
        self.tf32 = tf32
        self._sides = [side for side in network.encoder.taps if side in network.config.connect_list]
        self._network = mixed(network, precision) if in_place else self._copy(network)
        self._network.eval().requires_grad_(False)
        self._graphs = None if recorder is None else Graphs(recorder, self._network)

    def _copy(self, network: CodeFormer) -> CodeFormer:
        with skeletons():
            copied = CodeFormer(network.config)
        state = {name: self._placed(name, tensor) for name, tensor in network.state_dict().items()}
        copied.load_state_dict(state, assign=True)
        return copied

    def _placed(self, name: str, tensor: Tensor) -> Tensor:
        if not name.startswith(("generator.", "fuse_convs_dict.")) or self.dtype == torch.float32:
            return tensor.to(self.device)
        layout = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
        return tensor.to(self.device, self.dtype, memory_format=layout)

    @torch.inference_mode()
    def encode(self, x: Tensor) -> CodeState:
        x = x.to(self.device, torch.float32, memory_format=torch.channels_last)
        with cuda_tf32(self.tf32):
            logits, quant, lq_feat, *features = self._call(("encode", self.tf32), self._encode, [x])
        return CodeState(logits, quant, lq_feat, dict(zip(self._sides, features)))

    def _encode(self, x: Tensor) -> tuple[Tensor, ...]:
        state = self._network.encode(x)
        return state.logits, state.quant, state.lq_feat, *(state.features[side] for side in self._sides)

    @torch.inference_mode()
    def decode(self, state: CodeState, w: float | Tensor = 0.5, adain: bool = False) -> Tensor:
        fuse = isinstance(w, Tensor) or w > 0
        features = [state.features[side] for side in self._sides] if fuse else []
        if self._graphs is not None and not isinstance(w, Tensor):  # a number would be part of the recording
            w = torch.full((len(state.quant),), w, device=self.device)
        weight = [w.to(self.device, self.dtype)] if isinstance(w, Tensor) and fuse else []

        def run(quant: Tensor, lq_feat: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
            codes = adain_codes(CodeState(quant, quant, lq_feat, {})) if adain else quant
            cast = {side: self._cast(f) for side, f in zip(self._sides, rest[len(weight) :])}
            fidelity = rest[0] if weight else w if fuse else 0.0
            return (self._network.decode(CodeState(quant, self._cast(codes), lq_feat, cast), fidelity).float(),)

        quant, lq_feat = (t.to(self.device) for t in (state.quant, state.lq_feat))
        return self._call(("decode", fuse, adain), run, [quant, lq_feat, *weight, *features])[0]

    def _call(self, name: tuple, function: Function, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        return function(*inputs) if self._graphs is None else self._graphs(name, function, inputs)

    @property
    def graphs(self) -> Graphs | None:
        """The recordings, where this engine makes any."""
        return self._graphs

    def release(self) -> None:
        if self._graphs is not None:
            self._graphs.clear()

    def _cast(self, x: Tensor) -> Tensor:
        return x.to(self.device, self.dtype, memory_format=torch.channels_last)
