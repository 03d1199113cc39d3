"""The restoring network as an ONNX file, for the runtimes that one could use instead: python -m benchmarks.export OUT

The whole pass at one fidelity, one face, float32: input ``x`` [1,3,S,S] in [-1,1], outputs ``image`` and ``logits``.
"""
from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from idcodeformer.networks.codeformer import CodeFormer

from .weights import load


class _Pass(nn.Module):
    """The network at a fixed w, with the two outputs that are compared."""

    def __init__(self, network: CodeFormer, w: float):
        super().__init__()
        self.network, self.w = network, w

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        image, logits, _ = self.network(x, self.w, True)
        return image, logits


def export(network: CodeFormer, w: float, path: Path) -> None:
    """Write ``network`` at fidelity ``w`` to ``path``; its weights lie in the same file."""
    side = network.config.img_size
    torch.onnx.export(
        _Pass(network, w).eval(), (torch.zeros(1, 3, side, side),), str(path),
        input_names=["x"], output_names=["image", "logits"], opset_version=18, dynamo=False,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="the .onnx file to write")
    parser.add_argument("--weights", type=Path, help="weight file or recipe folder; default: seeded random weights")
    parser.add_argument("--w", type=float, default=0.5, help="fidelity")
    options = parser.parse_args()
    export(load(options.weights), options.w, options.out)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
