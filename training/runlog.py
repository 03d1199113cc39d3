"""What a run leaves to read: log.txt, metrics.csv, TensorBoard events, sample grids, a progress bar."""
from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any, Mapping

import numpy as np
import torch
from torch import Tensor


class RunLog:
    """Writes on the first process only; on the others every call does nothing."""

    def __init__(self, folder: Path, start: int, steps: int, active: bool):
        self.active, self.folder = active, folder
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter
        from tqdm import tqdm

        (folder / "samples").mkdir(parents=True, exist_ok=True)
        self.events = SummaryWriter(str(folder / "events"), purge_step=start)
        self.text = open(folder / "log.txt", "a", buffering=1)
        self.bar = tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True, mininterval=2.0)
        self.rows = folder / "metrics.csv"
        self.sums: dict[str, list[float]] = {}
        self.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} step {start} of {steps}, torch {torch.__version__}")

    def write(self, line: str) -> None:
        if self.active:
            self.text.write(line + "\n")

    def step(self, step: int, values: Mapping[str, Any], flush: bool) -> None:
        """Average between flushes; reading a value waits for the device, so it happens at flushes only on CUDA."""
        if not self.active:
            return
        for key, value in values.items():
            self.sums.setdefault(key, []).append(value.detach() if isinstance(value, Tensor) else value)
        self.bar.update(1)
        if flush:
            means = {k: float(sum(float(x) for x in v) / len(v)) for k, v in self.sums.items()}
            self.sums = {}
            self.bar.set_postfix({k: f"{v:.3g}" for k, v in means.items() if k in ("total", "l1", "identity", "perceptual", "code")})
            self.values(step + 1, means)

    def values(self, step: int, means: Mapping[str, float]) -> None:
        if not self.active:
            return
        for key, value in means.items():
            self.events.add_scalar(key, value, step)
        self.write(f"{time.strftime('%H:%M:%S')} step {step} " + " ".join(f"{k} {v:.5g}" for k, v in means.items()))
        new = not self.rows.exists()
        with open(self.rows, "a", newline="") as file:  # long format: each stage and each moment has its own columns
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", "name", "value"])
            writer.writerows([step, k, f"{v:.6g}"] for k, v in means.items())

    def skipped(self, reasons: Mapping[str, str]) -> None:
        if self.active and reasons:
            self.write(f"{len(reasons)} files were skipped:")
            for path, reason in sorted(reasons.items()):
                self.write(f"  {path}: {reason}")

    def close(self) -> None:
        if self.active:
            self.bar.close()
            self.events.close()
            self.text.close()


def sample_grid(batch: Mapping[str, Any], image: Tensor, path: Path, with_input: bool) -> None:
    """PNG with a row for each face: input | restored | truth."""
    from PIL import Image

    restored = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
    columns = [batch["degraded"].cpu()] if with_input else []
    columns += [restored, batch["truth"].cpu()]
    sheet = torch.cat([torch.cat(list(c), dim=1) for c in columns], dim=2)  # [3,N*S,columns*S]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(sheet.permute(1, 2, 0).numpy())).save(path)
