"""Checkpoints: self-describing, written atomically, read without unpickling code.

Keys: ``format``, ``stage``, ``config`` (plain), ``step`` (steps done), ``model`` (stage without its frozen parts),
``ema`` (the exported network), ``optimisers``, ``discriminator``, ``precision`` (loss scaler of 16-mixed), ``best``
(lowest validation score), ``score`` (which terms it counts), ``sources`` (digests of data and weight files), ``torch``
(version). Files of older versions lack ``score`` and ``sources``.
"""
from __future__ import annotations

import os
from pathlib import Path, PurePath
from typing import Any, Mapping

import torch

from .config import ConfigError, TrainConfig, from_dict, to_dict

FORMAT = 1
SCORE = 2  # 2: all weighted terms but the adversary; 1 (not written): L1, perceptual and identity
# What may differ between a checkpoint's config and the run that resumes it. ``steps`` lengthens a run; under the cosine
# schedule that changes the later rates, and the run says so.
FREE_KEYS = (
    "out", "steps", "log_every", "sample_every", "save_every", "val_every", "val_images", "val", "val_degradation",
    "threads", "accelerator", "devices", "nodes", "degradations",
)  # fmt: skip


# Where files lie says nothing; what they hold is compared by ``sources``.
PATH_KEYS = (
    "init", "vqgan", "data.roots", "data.shards", "data.extra", "loss.identity_weights", "loss.anchor_weights",
    "loss.perceptual_weights", "loss.perceptual_heads", "recogniser.teacher",
)  # fmt: skip


def refuse_used_folder(folder: Path, resume: Path | None) -> None:
    """Raise ConfigError where ``folder`` holds a run that the new one would replace without going on from it."""
    held = next((folder / name for name in ("last.ckpt", "best.ckpt") if (folder / name).exists()), None)
    if held is None or (resume is not None and resume.resolve().parent == folder.resolve()):
        return
    raise ConfigError(
        f"{folder} holds a run ({held.name}). Go on with --resume auto, name another folder with out=..., or replace "
        "it with --overwrite."
    )


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


def _last_parts(value: Any) -> Any:
    if isinstance(value, list):
        return [_last_parts(v) for v in value]
    return PurePath(value).name if isinstance(value, str) else value


def differences(stored: dict[str, Any], current: dict[str, Any], prefix: str = "", paths: bool = True) -> list[str]:
    """Keys whose values differ, dotted; the free ones aside. ``paths``: paths too have to end in the same names."""
    found = []
    for key in sorted(stored.keys() | current.keys()):
        if not prefix and key in FREE_KEYS or (prefix == "data." and key in ("workers", "cache")):
            continue
        a, b = stored.get(key), current.get(key)
        if prefix + key in PATH_KEYS:
            if not paths:
                continue
            a, b = _last_parts(a), _last_parts(b)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{key}.", paths)
        elif a != b:
            found.append(f"{prefix}{key} ({a!r} in the checkpoint, {b!r} now)")
    return found


def check_same(path: Path, state: Mapping[str, Any], current: TrainConfig, sources: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose configuration means another computation, naming the keys. Keys that the program did not
    have when it was written count as their defaults.

    ``sources``: digests of what the run reads. A checkpoint that records its own is compared by them, so that data and
    weights may lie elsewhere; one of an older version is compared by the names of files and folders.
    """
    before = state.get("sources")
    different = differences(to_dict(from_dict(state["config"])), to_dict(current), paths=before is None)
    if before is not None:
        changed = [key for key in sorted({*before, *sources}) if before.get(key) != sources.get(key)]
        different += [f"{key} (other contents)" for key in changed]
    if different:
        raise ConfigError(
            f"{path} is of another configuration: {'; '.join(different[:4])}. Resume with the same keys, or start "
            "a new run with init=... and another out=..."
        )
