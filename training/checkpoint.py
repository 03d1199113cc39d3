"""Checkpoints: self-describing, written atomically, read without unpickling code.

Keys: ``format``, ``stage``, ``config`` (plain), ``step`` (steps done), ``model`` (stage without its frozen parts),
``ema`` (the exported network), ``optimisers``, ``discriminator``, ``precision`` (loss scaler of 16-mixed), ``best``
(lowest validation score), ``torch`` (version).
"""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Mapping

import torch

from .config import ConfigError, TrainConfig, from_dict, to_dict

FORMAT = 1
# what may differ between a checkpoint's config and the run that resumes it: nothing that changes the mathematics
FREE_KEYS = (
    "out", "steps", "log_every", "sample_every", "save_every", "val_every", "val_images", "val", "val_degradation",
    "threads", "accelerator", "devices", "nodes", "degradations",
)  # fmt: skip


def write_checkpoint(state: dict[str, Any], path: Path) -> None:
    """A reader sees the old file or the new one, never a half: written aside, flushed to disk, renamed."""
    partial = path.with_suffix(path.suffix + ".partial")
    with open(partial, "wb") as file:
        torch.save({"format": FORMAT, "torch": str(torch.__version__), **state}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Raises ConfigError where the file is absent, damaged or not one of ours."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ConfigError(f"There is no checkpoint {path}.") from error
    except Exception as error:  # whatever the zip and pickle readers raise on a damaged file
        raise ConfigError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}). Use another, e.g. best.ckpt."
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ConfigError(f"{path} is not a checkpoint of this program (format {FORMAT}).")
    return state


def differences(stored: dict[str, Any], current: dict[str, Any], prefix: str = "") -> list[str]:
    """Keys whose values differ, dotted; the free ones aside."""
    found = []
    for key in sorted(stored.keys() | current.keys()):
        if not prefix and key in FREE_KEYS or (prefix == "data." and key in ("workers", "cache")):
            continue
        a, b = stored.get(key), current.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} ({a!r} in the checkpoint, {b!r} now)")
    return found


def check_same(path: Path, stored: Mapping[str, Any], current: TrainConfig) -> None:
    """Refuse a checkpoint whose configuration means another computation, naming the keys. Keys that the program did not
    have when it was written count as their defaults."""
    different = differences(to_dict(from_dict(stored)), to_dict(current))
    if different:
        raise ConfigError(
            f"{path} is of another configuration: {'; '.join(different[:4])}. Resume with the same keys, or start "
            "a new run with init=... and another out=..."
        )
