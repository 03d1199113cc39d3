"""The restoring network on the CPU, against a plain eager pass: python -m benchmarks.network [--weights FILE]

All variants share one set of weights and run in turn in one process. With --keep-pages the allocator keeps freed pages
for all of them, as in the command line; without it, as inside another program. PSNR is of the network's image (peak 2),
and codes are counted over all tokens, both against the plain pass. ONNX Runtime and OpenVINO run the exported network
where they are installed (--no-peers leaves them out).
"""
from __future__ import annotations

from pathlib import Path

import torch

from idcodeformer.networks.codeformer import CodeFormer
from idcodeformer.restoration.engine.execution import accelerate
from idcodeformer.restoration.engine.strips import cpu_has_bf16
from idcodeformer.runtime.allocator import keep_pages

from .common import arguments, finish, interleaved, seconds_of, set_threads, table
from .peers import peers
from .plain import plain_forward
from .weights import face_like, load


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """dB at peak 2; images that are equal give infinity."""
    return float(-10 * ((a.double() - b.double()) / 2).square().mean().log10())


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--weights", type=Path, help="weight file or recipe folder; default: seeded random weights")
    parser.add_argument("--w", type=float, default=0.5, help="fidelity")
    parser.add_argument("--keep-pages", action="store_true")
    parser.add_argument("--no-peers", action="store_true", help="leave other runtimes out")
    options = parser.parse_args()
    set_threads(options.threads)
    kept = keep_pages() if options.keep_pages else False
    network = load(options.weights)
    x = face_like(1, network.config.img_size)
    rows = measure(network, x, options)
    header = ["variant", "s/face", "x plain", "PSNR dB", "max error", "codes changed"]
    pages = "kept" if kept else "returned to the system"
    title = f"{network.config.img_size} px, w = {options.w:g}, one face, freed pages {pages}"
    table(title, header, [list(row.values()) for row in rows])
    finish("network", {"w": options.w, "pages_kept": kept, "variants": rows}, options.json)


def measure(network: CodeFormer, x: torch.Tensor, options) -> list[dict[str, object]]:
    """One row per variant, the plain pass first."""
    fp32, w = accelerate(network, "cpu", "fp32"), options.w

    def module() -> tuple[torch.Tensor, ...]:
        with torch.inference_mode():
            return network(x, w, True)

    variants = {
        "plain eager fp32": lambda: plain_forward(network, x, w, True),
        "the module (SDPA, inference mode)": module,
        "engine fp32": lambda: fp32(x, w, True),
    }
    if cpu_has_bf16():
        mixed = accelerate(network, "cpu", "bf16")
        variants["engine bf16 decoder"] = lambda: mixed(x, w, True)
    if not options.no_peers:
        variants |= peers(network, x, w)
    image, logits, _ = variants["plain eager fp32"]()
    timed = {name: seconds_of(run, options.clock) for name, run in variants.items()}
    seconds = interleaved(timed, options.rounds, options.statistic)
    rows = []
    for name, run in variants.items():
        ours, our_logits, *_ = run()
        rows.append(
            {
                "variant": name,
                "seconds": seconds[name],
                "ratio": seconds["plain eager fp32"] / seconds[name],
                "psnr": psnr(ours, image),
                "max_error": float((ours - image).abs().max()),
                "codes_changed": int((our_logits.argmax(2) != logits.argmax(2)).sum()),
            }
        )
    return rows


if __name__ == "__main__":
    main()
