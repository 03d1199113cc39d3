"""What a run leaves to read: log.txt, metrics.csv, TensorBoard events, sample grids, a progress bar."""
from __future__ import annotations

import csv
import os
import sys
import time
from pathlib import Path
from typing import Any, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from .processes import gathered, mean

ON_THE_BAR = ("total", "l1", "perceptual", "identity", "code", "feature", "gan", "d", "distil", "relation")


class RunLog:
    """Writes on the first process only. The others take part where figures of all processes are put together."""

    def __init__(self, folder: Path, start: int, steps: int, active: bool):
        self.active, self.folder = active, folder
        self.sums: dict[str, list[Any]] = {}
        self.skipped: dict[str, str] = {}
        self._listed: set[str] = set()
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter

        from idcodeformer.runtime.progress import progress_bar

        (folder / "samples").mkdir(parents=True, exist_ok=True)
        self.rows = folder / "metrics.csv"
        _forget_after(self.rows, start)
        self.events = SummaryWriter(str(folder / "events"), purge_step=start + 1)
        self.text = open(folder / "log.txt", "a", buffering=1, encoding="utf-8")
        self.bar = progress_bar(steps, "step", done=start)
        self.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} step {start} of {steps}, torch {torch.__version__}")

    def write(self, line: str) -> None:
        if self.active:
            self.text.write(line + "\n")

    def notice(self, line: str | None) -> None:
        """Say a line above the progress bar, and write it; None says nothing."""
        if self.active and line:
            self.bar.write(line, file=sys.stderr)
            self.write(line)

    def step(self, step: int, values: Mapping[str, Any], flush: bool) -> None:
        """Collect the values of a step (0-based); ``flush`` writes their means since the last time, over all processes.

        Reading a value waits for the device, so it happens at flushes only.
        """
        for key, value in values.items():
            self.sums.setdefault(key, []).append(value.detach() if isinstance(value, Tensor) else value)
        if self.active:
            self.bar.update(1)
        if flush:
            own = {k: sum(float(x) for x in v) / len(v) for k, v in self.sums.items()}
            figures = mean(torch.tensor(list(own.values()), dtype=torch.float64)).tolist()
            self.sums = {}
            self.values(step + 1, dict(zip(own, figures)))

    def values(self, step: int, means: Mapping[str, float]) -> None:
        """Write figures after ``step`` steps to the bar, the events, the log and the table."""
        if not self.active:
            return
        shown = {k: f"{v:.3g}" for k, v in means.items() if k in ON_THE_BAR}
        if shown:
            self.bar.set_postfix(shown)
        for key, value in means.items():
            self.events.add_scalar(key, value, step)
        self.write(f"{time.strftime('%H:%M:%S')} step {step} " + " ".join(f"{k} {v:.5g}" for k, v in means.items()))
        new = not self.rows.exists()
        with open(self.rows, "a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", "name", "value"])  # long: each stage and each moment has its own names
            writer.writerows([step, k, f"{v:.6g}"] for k, v in means.items())

    def picture(self, step: int, sheet: np.ndarray) -> None:
        """Keep a sample grid, uint8 RGB [H,W,3], as PNG and among the events."""
        if self.active:
            from PIL import Image

            Image.fromarray(sheet).save(self.folder / "samples" / f"{step:07d}.png")
            self.events.add_image("samples", sheet, step, dataformats="HWC")

    def skip(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Take note of (name, reason) of images that could not be used; the log names each once."""
        self.skipped.update(pairs)
        for name in self.skipped.keys() - self._listed:
            self._listed.add(name)
            self.write(f"skipped {name}: {self.skipped[name]}")

    def share_skipped(self) -> None:
        """Bring what all processes skipped into the first one's log."""
        for part in gathered(self.skipped):
            self.skip(part.items())

    def close(self) -> None:
        if self.active:
            if self.skipped:
                self.write(f"{len(self.skipped)} files were skipped; the lines 'skipped' above name them.")
            self.bar.close()
            self.events.close()
            self.text.close()


def _forget_after(rows: Path, step: int) -> None:
    """Take the rows of later steps, and a half-written last one, out of the table: a resumed run writes them again."""
    if not rows.exists():
        return
    with open(rows, newline="", encoding="utf-8") as file:
        kept = [row for row in csv.reader(file) if len(row) == 3 and row[0].isdigit() and int(row[0]) <= step]
    partial = rows.with_suffix(".partial")
    with open(partial, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["step", "name", "value"], *kept])
    os.replace(partial, rows)  # a crash leaves the old table or the new one


def sample_grid(batch: Mapping[str, Any], image: Tensor, with_input: bool) -> np.ndarray:
    """uint8 RGB [rows*S, columns*S, 3], a row for each face: input | restored | truth."""
    restored = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
    columns = [batch["degraded"].cpu()] if with_input else []
    columns += [restored, batch["truth"].cpu()]
    sheet = torch.cat([torch.cat(list(c), dim=1) for c in columns], dim=2)  # [3,N*S,columns*S]
    return np.ascontiguousarray(sheet.permute(1, 2, 0).numpy())
