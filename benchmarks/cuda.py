"""Achieved TFLOP/s and GB/s on a CUDA device, by device events: python -m benchmarks.cuda

Arithmetic is counted by torch's own counter on one pass; traffic is the least that must move: weights once per face,
and every convolution's, linear's and norm's input and output once. Without a CUDA device it says so and stops.
"""
from __future__ import annotations

from pathlib import Path
from typing import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from idcodeformer.networks.codeformer import CodeFormer
from idcodeformer.restoration.engine.execution import ModuleEngine, accelerate

from .common import arguments, finish, table
from .weights import face_like, load


def operations(network: CodeFormer, x: Tensor, w: float) -> float:
    """Floating-point operations (2 per multiply-add) of one pass over ``x``, counted by running it."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(x, w, True)
    return float(counter.get_total_flops())


def least_traffic(network: CodeFormer, x: Tensor, w: float, decoder_bytes: int) -> float:
    """Bytes: what layers read and write, each once; generator and fusion at ``decoder_bytes`` per number."""
    total, hooks = 0.0, []

    def count(size: int) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            nonlocal total
            numbers = sum(i.numel() for i in inputs if isinstance(i, Tensor)) + output.numel()
            total += size * (numbers + sum(p.numel() for p in module.parameters(recurse=False)))

        return hook

    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.GroupNorm, nn.LayerNorm)):
            size = decoder_bytes if name.startswith(("generator", "fuse")) else 4
            hooks.append(module.register_forward_hook(count(size)))
    with torch.inference_mode():
        network(x, w, True)
    for hook in hooks:
        hook.remove()
    return total


def milliseconds(run: Callable[[], object], rounds: int) -> float:
    """Median device time of one call, by events; nothing waits in between."""
    for _ in range(3):
        run()
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    for start, stop in pairs:
        start.record()
        run()
        stop.record()
    torch.cuda.synchronize()
    times = sorted(start.elapsed_time(stop) for start, stop in pairs)
    return times[len(times) // 2]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--weights", type=Path, help="weight file; default: seeded random weights")
    parser.add_argument("--w", type=float, default=0.5, help="fidelity")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 16])
    options = parser.parse_args()
    network = load(options.weights)
    one = face_like(1, network.config.img_size)
    flop = operations(network, one, options.w)
    print(f"One face of {network.config.img_size} px at w = {options.w:g}: {flop / 1e9:.0f} GFLOP")
    if not torch.cuda.is_available():
        print("torch finds no CUDA device here: nothing was measured.")
        return
    traffic = {p: least_traffic(network, one, options.w, 4 if p == "fp32" else 2) for p in ("fp32", "bf16", "fp16")}
    network = network.cuda()
    engines = {p: accelerate(network, "cuda", p) for p in ("fp32", "bf16", "fp16")}
    engines["fp32, TF32 allowed"] = ModuleEngine(network, torch.device("cuda"), "fp32", tf32=True)
    rows = []
    for batch in options.batches:
        x = face_like(batch, network.config.img_size).cuda()
        for name, engine in engines.items():
            ms = milliseconds(lambda engine=engine, x=x: engine(x, options.w, True), options.rounds)
            moved = traffic[engine.precision] * batch
            rows.append([name, batch, ms / batch, flop * batch / ms / 1e9, moved / ms / 1e6])
    header = ["precision", "batch", "ms/face", "TFLOP/s", "GB/s at least"]
    table("The network on CUDA, device events", header, rows)
    finish("cuda", {"gflop_per_face": flop / 1e9, "rows": [dict(zip(header, r)) for r in rows]}, options.json)


if __name__ == "__main__":
    main()
