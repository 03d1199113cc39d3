"""The plots of an evaluation: ID-Sim and PSNR against w, and how ID-Sim is distributed."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..config import ConfigError

COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#8172b3", "#937860", "#da8bc3")


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError("Plots need matplotlib. Run: pip install matplotlib") from error
    matplotlib.use("Agg")  # files only: no window, whatever the machine
    import matplotlib.pyplot as plt

    return plt


def against_w(block: dict[str, Any], recognisers: dict[str, Any], title: str, path: Path) -> None:
    """A panel for the ID-Sim of each recogniser and one for PSNR, with 95 % bands; floor and ceiling are level."""
    plt = _pyplot()
    panels = [(f"id_sim {name}", f"ID-Sim, {name}\n({info['role']})") for name, info in recognisers.items()]
    panels.append(("psnr", "PSNR / dB"))
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.8), squeeze=False)
    for axis, (key, label) in zip(axes[0], panels, strict=True):
        models = dict.fromkeys(row["name"] for row in block["rows"] if row["kind"] == "model")
        for colour, name in zip(_cycle(len(models)), models, strict=True):
            rows = [r for r in block["rows"] if r["name"] == name]
            ws = [r["w"] for r in rows]
            figures = [r["figures"][key] for r in rows]
            axis.plot(ws, [f["value"] for f in figures], marker="o", color=colour, label=name)
            axis.fill_between(ws, [f["low"] for f in figures], [f["high"] for f in figures], color=colour, alpha=0.2)
        for kind, style in (("input", ":"), ("ceiling", "--")):
            for row in (r for r in block["rows"] if r["kind"] == kind):
                axis.axhline(row["figures"][key]["value"], linestyle=style, color="#555555", label=kind)
        axis.set_xlabel("w")
        axis.set_title(label, fontsize=10)
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    _finish(plt, figure, title, path)


def distribution(sims: dict[str, dict[str, np.ndarray]], recognisers: dict[str, Any], title: str, path: Path) -> None:
    """One panel for each recogniser: shares of the images by ID-Sim, a line and the mean for each row of the table."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, len(sims), figsize=(5.2 * len(sims), 4.6), squeeze=False)
    for axis, (judge, rows) in zip(axes[0], sims.items(), strict=True):
        low = min(float(v.min()) for v in rows.values())
        count = len(next(iter(rows.values())))
        bins = np.linspace(min(low, 0.0), 1.0, round(min(40, max(10, 2 * count**0.5))) + 1)
        for colour, (label, values) in zip(_cycle(len(rows)), rows.items(), strict=True):
            share = np.full(len(values), 1 / len(values))
            mean = f"{label}: {values.mean():.3f}"
            axis.hist(values, bins=bins, weights=share, histtype="step", linewidth=1.6, color=colour, label=mean)
        axis.set_xlabel("ID-Sim")
        axis.set_ylabel("share of the images")
        axis.set_title(f"{judge} ({recognisers[judge]['role']})", fontsize=10)
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    _finish(plt, figure, title, path)


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _finish(plt: Any, figure: Any, title: str, path: Path) -> None:
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
