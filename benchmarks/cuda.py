"""Everything about a GPU in one command: python -m benchmarks.cuda [--weights FILE] [--json FILE]

Parity with the CPU, waits of the host, speed by batch size (eager, CUDA graphs, torch.compile) against peaks measured
on the same card, the whole pipeline at 1080p, guidance, and memory. Takes some minutes and writes JSON. Without a CUDA
device it says so and measures nothing; ``--rehearse`` goes through every part on the CPU with a tiny network, to try
the command itself: those figures mean nothing.
"""
from __future__ import annotations

import argparse
from pathlib import Path

import torch

from idcodeformer.networks.codeformer import CodeFormer, CodeFormerConfig

from .common import finish, table
from .cuda_parts import Card, guidance, memory, parity, peaks, pipelines, speed, waits
from .weights import load, seeded

TINY = CodeFormerConfig(
    img_size=64, nf=32, ch_mult=(1, 2, 2), attn_resolutions=(16,), codebook_size=32, emb_dim=16,
    dim_embd=32, dim_mlp=64, n_head=2, n_layers=1, connect_list=(16, 32),
)  # fmt: skip


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, help="weight file or recipe folder; default: seeded random weights")
    parser.add_argument("--w", type=float, default=0.5, help="fidelity")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--faces", type=int, nargs="+", default=[1, 8, 40], help="in the 1080p picture")
    parser.add_argument("--steps", type=int, default=15, help="of guidance")
    parser.add_argument("--rounds", type=int, default=10, help="times that every variant runs")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--json", type=Path, default=Path("cuda.json"), help="where the results go")
    parser.add_argument("--rehearse", action="store_true", help="all parts on the CPU with a tiny network")
    options = parser.parse_args(arguments)
    if options.rehearse:
        options.batches, options.faces, options.steps, options.rounds = [1, 2], [1], 2, 1
        options.no_compile = True
    return options


def main(arguments: list[str] | None = None) -> None:
    options = options_of(arguments)
    if not options.rehearse and not torch.cuda.is_available():
        print("torch finds no CUDA device here: nothing was measured.")
        return
    card = Card("cpu" if options.rehearse else "cuda")
    network: CodeFormer = seeded(TINY) if options.rehearse else load(options.weights)
    results: dict[str, object] = {"rehearsal": options.rehearse, "w": options.w}
    parts = {
        "peaks": lambda: peaks(card, options),
        "parity": lambda: parity(card, network, options),
        "waits": lambda: waits(card, network, options),
        "speed": lambda: speed(card, network, options, results["peaks"]),
        "pipeline": lambda: pipelines(card, network, options),
        "guidance": lambda: guidance(card, network, options),
        "memory": lambda: memory(card, network, options),
    }
    for name, part in parts.items():
        rows = part()
        results[name] = rows
        table(name.capitalize(), list(rows[0]), [list(row.values()) for row in rows])
        card.empty()
    finish("cuda", results, options.json)


if __name__ == "__main__":
    main()
