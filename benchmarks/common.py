"""What the benchmarks share: interleaved timing, tables, JSON, and what they ran on."""
from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Callable, Mapping, Sequence

import torch

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
STATISTICS = {"median": statistics.median, "best": min}


def arguments(description: str) -> argparse.ArgumentParser:
    """The options every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=5, help="times that every variant runs, in turn")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch and OpenCV; 0 = their default")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu = processor time, for a machine that is busy otherwise"
    )
    parser.add_argument("--statistic", choices=STATISTICS, default="median", help="of the rounds")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    return parser


def set_threads(count: int) -> None:
    if count:
        import cv2

        torch.set_num_threads(count)
        cv2.setNumThreads(count)


def seconds_of(run: Callable[[], object], clock: str = "wall") -> Callable[[], float]:
    """``run``, made to return how long it took."""
    now = CLOCKS[clock]

    def timed() -> float:
        start = now()
        run()
        return now() - start

    return timed


def interleaved(
    variants: Mapping[str, Callable[[], float]], rounds: int, statistic: str = "median"
) -> dict[str, float]:
    """The seconds that every variant returns, of all rounds. They run in turn: a machine that slows down slows all."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, run in variants.items():
            seconds = run()
            if turn:  # the first turn fills caches and lazily made state
                times[name].append(seconds)
    return {name: STATISTICS[statistic](each) for name, each in times.items()}


def machine() -> dict[str, object]:
    """The device, in words."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        cpu = names[0] if names else cpu
    device: dict[str, object] = {
        "cpu": cpu,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        device["gpu"] = torch.cuda.get_device_name()
    return device


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table."""
    text = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row] for row in rows]
    widths = [max(len(r[i]) for r in (list(header), *text)) for i in range(len(header))]
    lines = [list(header), ["-" * w for w in widths], *text]
    print(f"\n{title}\n")
    for line in lines:
        print("| " + " | ".join(v.ljust(w) for v, w in zip(line, widths)) + " |")


def finish(name: str, results: dict[str, object], path: Path | None) -> None:
    """Print what it ran on, and keep the results."""
    report = {"benchmark": name, "machine": machine(), **results}
    print("\n" + ", ".join(f"{k} {v}" for k, v in machine().items()))
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        print(f"Results: {path}")
