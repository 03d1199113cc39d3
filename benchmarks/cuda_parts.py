"""The parts of benchmarks.cuda. Each returns rows of a table; None where this device cannot tell."""
from __future__ import annotations

import argparse
import copy
import time
import warnings
from typing import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from idcodeformer import FacePipeline, RestoreOptions, load_detector, load_recogniser
from idcodeformer.guidance.optimise import guide
from idcodeformer.guidance.options import GuidanceOptions
from idcodeformer.networks.codeformer import CodeFormer
from idcodeformer.restoration.codeformer import CodeFormerRestorer
from idcodeformer.restoration.engine.execution import ModuleEngine, Precision
from idcodeformer.restoration.engine.graphs import CudaRecorder

from .plain import plain_forward
from .scenes import crowd, grid_of_faces, portrait
from .weights import face_like

Row = dict[str, object]
_MOST_ERROR = 1e-3  # fp32 against the CPU, of an image in [-1,1]
_LEAST_DB = 45.0  # of a decoder in lower precision


class Card:
    """The device that is measured, and its clock: device events on CUDA, the host's clock in a rehearsal."""

    def __init__(self, device: str):
        self.device = torch.device(device)
        self.cuda = self.device.type == "cuda"
        self.precisions: tuple[Precision, ...] = ("fp32", "bf16", "fp16") if self.cuda else ("fp32",)

    def milliseconds(self, run: Callable[[], object], rounds: int) -> float:
        """Median time of one call after two that do not count; nothing waits in between."""
        for _ in range(2):
            run()
        if not self.cuda:
            start = time.perf_counter()
            for _ in range(rounds):
                run()
            return (time.perf_counter() - start) * 1e3 / rounds
        pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
        for start, stop in pairs:
            start.record()
            run()
            stop.record()
        torch.cuda.synchronize()
        times = sorted(start.elapsed_time(stop) for start, stop in pairs)
        return times[len(times) // 2]

    def seconds(self, run: Callable[[], object]) -> float:
        """Wall time of one call with all that it started, after one that does not count."""
        run()
        self.settle()
        start = time.perf_counter()
        run()
        self.settle()
        return time.perf_counter() - start

    def settle(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def empty(self) -> None:
        if self.cuda:
            torch.cuda.empty_cache()

    def waits(self, run: Callable[[], object]) -> int | None:
        """How often the host waited for the device during a call, by torch's own account."""
        if not self.cuda:
            return None
        run()
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                run()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in caught)

    def engine(
        self, network: CodeFormer, precision: Precision, graphs: bool = False, tf32: bool = False
    ) -> ModuleEngine:
        recorder = CudaRecorder(self.device) if graphs and self.cuda else None
        return ModuleEngine(network, self.device, precision, tf32=tf32, recorder=recorder)


def operations(run: Callable[[], object]) -> float:
    """Floating-point operations (2 per multiply-add) of a call, counted by torch while it runs."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():  # torch 2.1 counts nothing in inference mode
        run()
    return float(counter.get_total_flops())


def least_traffic(network: CodeFormer, x: Tensor, w: float, decoder_bytes: int) -> tuple[float, float]:
    """Bytes that encoding and decoding must move: what layers read and write, each once, and weights once."""
    moved, hooks = [0.0, 0.0], []

    def count(part: int, size: int) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            numbers = sum(i.numel() for i in inputs if isinstance(i, Tensor)) + output.numel()
            moved[part] += size * (numbers + sum(p.numel() for p in module.parameters(recurse=False)))

        return hook

    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.GroupNorm, nn.LayerNorm)):
            decoder = name.startswith(("generator", "fuse"))
            hooks.append(module.register_forward_hook(count(int(decoder), decoder_bytes if decoder else 4)))
    with torch.inference_mode():
        network(x, w, True)
    for hook in hooks:
        hook.remove()
    return moved[0], moved[1]


def peaks(card: Card, options: argparse.Namespace) -> list[Row]:
    """What the card reaches on a large matrix product in each precision, and on a copy."""
    side = 8192 if card.cuda else 64
    rows: list[Row] = []
    before = torch.backends.cuda.matmul.allow_tf32
    cases = [("fp32", torch.float32, False), ("tf32", torch.float32, True)]
    cases += [("bf16", torch.bfloat16, False), ("fp16", torch.float16, False)]
    try:
        for name, dtype, tf32 in cases if card.cuda else cases[:1]:
            torch.backends.cuda.matmul.allow_tf32 = tf32
            a, b = (torch.randn(side, side, device=card.device).to(dtype) for _ in range(2))
            ms = card.milliseconds(lambda a=a, b=b: a @ b, options.rounds)
            rows.append({"what": name, "TFLOP/s": 2 * side**3 / ms / 1e9, "GB/s": None})
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    source = torch.empty((1 << 30) if card.cuda else 1 << 16, dtype=torch.uint8, device=card.device)
    target = torch.empty_like(source)
    ms = card.milliseconds(lambda: target.copy_(source), options.rounds)
    rows.append({"what": "copy", "TFLOP/s": None, "GB/s": 2 * source.numel() / ms / 1e6})
    return rows


def parity(card: Card, network: CodeFormer, options: argparse.Namespace) -> list[Row]:
    """Against a plain float32 pass on the CPU; with graphs the second pass of a kind records and the third replays."""
    x = face_like(2, network.config.img_size)
    image, logits, _ = plain_forward(network, x, options.w, True)
    rows: list[Row] = []
    for precision in card.precisions:
        for graphs in (False, True) if card.cuda else (False,):
            engine = card.engine(network, precision, graphs)
            for _ in range(3 if graphs else 1):
                ours, our_logits, _ = (t.cpu() for t in engine(x, options.w, True))
            error, decibel = float((ours - image).abs().max()), psnr(ours, image)
            changed = int((our_logits.argmax(2) != logits.argmax(2)).sum())
            close = error <= _MOST_ERROR if precision == "fp32" else decibel >= _LEAST_DB
            replayed = not graphs or bool(engine.graphs and engine.graphs.replays)
            rows.append(
                {"precision": precision, "graphs": graphs, "max error": error, "PSNR dB": decibel,
                 "codes changed": changed, "passed": close and changed == 0 and replayed}
            )  # fmt: skip
    return rows


def psnr(a: Tensor, b: Tensor) -> float:
    """dB at peak 2, capped at 200: JSON has no infinity."""
    return float(-10 * ((a.double() - b.double()) / 2).square().mean().clamp(min=1e-20).log10())


def waits(card: Card, network: CodeFormer, options: argparse.Namespace) -> list[Row]:
    """How often the host waits for the device, for each face, with pictures that lie on it."""
    restorer = CodeFormerRestorer(_copy(network), card.device)
    pixels = (face_like(max(options.batches), restorer.size).to(card.device) + 1) / 2
    found = card.waits(lambda: restorer(pixels, RestoreOptions(w=options.w)))
    return [{"what": "restorer", "faces": len(pixels), "waits": found,
             "per face": None if found is None else found / len(pixels)}]  # fmt: skip


def speed(card: Card, network: CodeFormer, options: argparse.Namespace, measured: object) -> list[Row]:
    """Each precision, batch size and way of running: faces a second, and the share of the measured peaks."""
    peak = {row["what"]: row["TFLOP/s"] for row in measured}  # type: ignore[union-attr]
    one = face_like(1, network.config.img_size)
    with torch.inference_mode():
        state = network.encode(one)
    flop = operations(lambda: network.encode(one)), operations(lambda: network.decode(state, options.w, True))
    rows: list[Row] = []
    for precision in card.precisions:
        moved = least_traffic(network, one, options.w, 4 if precision == "fp32" else 2)
        for way, engine in _ways(card, network, precision, options):
            for batch in options.batches:
                x = face_like(batch, network.config.img_size).to(card.device)
                row: Row = {"precision": precision, "way": way, "batch": batch}
                try:
                    states = engine.encode(x)
                    encode = card.milliseconds(lambda e=engine, x=x: e.encode(x), options.rounds)
                    decode = card.milliseconds(lambda e=engine, s=states: e.decode(s, options.w, True), options.rounds)
                except (RuntimeError, OSError) as error:  # no compiler, no memory for this size: the row says why
                    rows.append(row | _figures(None) | {"note": (str(error).splitlines() or [type(error).__name__])[0]})
                    continue
                each = {"encode": (encode, flop[0], moved[0]), "decode": (decode, flop[1], moved[1])}
                note = "" if engine.graphs is None else engine.graphs.error or ""
                rows.append(row | _figures(each, batch, peak.get(precision)) | {"note": note})
            engine.release()
            card.empty()
    return rows


def _figures(each: dict | None, batch: int = 1, peak: object = None) -> Row:
    names = ("ms/face", "faces/s", "decoder TFLOP/s", "decoder share of peak", "encoder TFLOP/s", "GB/s at least")
    if each is None:
        return dict.fromkeys(names)
    total = sum(ms for ms, _, _ in each.values())
    rate = {part: flop * batch / ms / 1e9 for part, (ms, flop, _) in each.items()}
    share = rate["decode"] / float(peak) if isinstance(peak, float) else None
    moved = sum(m for _, _, m in each.values()) * batch / total / 1e6
    return dict(zip(names, (total / batch, batch * 1e3 / total, rate["decode"], share, rate["encode"], moved)))


def _ways(card: Card, network: CodeFormer, precision: Precision, options: argparse.Namespace):
    yield "eager", card.engine(network, precision)
    if card.cuda:
        yield "graphs", card.engine(network, precision, graphs=True)
        if precision == "fp32":
            yield "eager, TF32 allowed", card.engine(network, precision, tf32=True)
    if not options.no_compile:
        engine = card.engine(network, precision)
        engine._network.encode = torch.compile(engine._network.encode)
        engine._network.decode = torch.compile(engine._network.decode)
        yield "torch.compile", engine


def pipelines(card: Card, network: CodeFormer, options: argparse.Namespace) -> list[Row]:
    """Detection, alignment, restoring and pasting of a 1080p picture (small in a rehearsal) that lies on the host."""
    restorer = CodeFormerRestorer(_copy(network), card.device)
    detector = load_detector(device=card.device)
    rows: list[Row] = []
    for count in options.faces:
        height, width = (1080, 1920) if card.cuda else (270, 480)
        image = crowd(height, width) if count > 1 else portrait(height, width, 4 * height // 5)
        faces = [grid_of_faces(count, *image.shape[1:])]

        def run(image: Tensor = image, faces: list = faces) -> None:
            detector([image])  # as many faces as wanted are given: what detection finds is not a figure's business
            FacePipeline(restorer, detector)([image], RestoreOptions(w=options.w), faces=faces)

        took = card.seconds(run)
        rows.append({"faces": count, "s/picture": took, "faces/s": count / took, "precision": restorer.precision})
    return rows


def guidance(card: Card, network: CodeFormer, options: argparse.Namespace) -> list[Row]:
    """Gradient steps a second of one face, with the built-in recogniser as guide."""
    restorer = CodeFormerRestorer(_copy(network), card.device)
    recogniser = load_recogniser(device=card.device)
    pixels = (face_like(1, restorer.size).to(card.device) + 1) / 2
    target = recogniser((face_like(1, restorer.size, seed=3).to(card.device) + 1) / 2)
    settings = GuidanceOptions(steps=options.steps, force=True)
    made: list[int] = []

    def run() -> None:
        made[:] = guide(restorer, pixels, target, recogniser, RestoreOptions(w=options.w), settings).steps

    took = card.seconds(run)
    return [{"steps": made[0], "s": took, "steps/s": made[0] / took, "precision": restorer.precision}]


def memory(card: Card, network: CodeFormer, options: argparse.Namespace) -> list[Row]:
    """Peak of allocated memory above what was allocated before, weights included, eager and with graphs."""
    rows: list[Row] = []
    for precision in card.precisions:
        for graphs in (False, True) if card.cuda else (False,):
            for batch in options.batches:
                x = face_like(batch, network.config.img_size).to(card.device)
                rows.append({"precision": precision, "graphs": graphs, "batch": batch,
                             "MB": _peak(card, network, precision, graphs, x, options.w)})  # fmt: skip
    return rows


def _peak(card: Card, network: CodeFormer, precision: Precision, graphs: bool, x: Tensor, w: float) -> float | None:
    card.empty()
    if card.cuda:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if card.cuda else 0
    engine = card.engine(network, precision, graphs)
    for _ in range(3):
        engine(x, w, True)
    return (torch.cuda.max_memory_allocated() - before) / 1e6 if card.cuda else None


def _copy(network: CodeFormer) -> CodeFormer:
    """A restorer moves its network; the yardstick stays where it is."""
    return copy.deepcopy(network)
