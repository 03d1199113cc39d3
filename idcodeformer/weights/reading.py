"""Reading a weight file without running anything that is in it.

Formats are told by content, never by suffix: safetensors, torch's zip and legacy pickles, ONNX. A pickle is walked
through with harmless stand-ins first, so that a file asking for anything but tensors is refused by name whatever other
programs in the process have told torch to trust.
"""
from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CorruptWeights, MissingWeights, UnsafeWeights, UnsupportedWeights
from .pickles import refuse_unsafe
from .registry import by_file

CONTAINERS = ("params_ema", "params", "state_dict", "model_state_dict", "model")  # keys of the weights, best first
# Before every key, best first.
PREFIXES = (*CONTAINERS, "net_g_ema", "net_g", "netG", "net", "vqvae", "module", "_orig_mod")
BESIDE = ("net_d", "netD", "discriminator", "loss", "perceptual", "head")  # what a training file may hold besides
_MOST_TENSORS = 4  # times the file's own size; tied weights count once for each name
_MOST_CONFIG = 10_000  # values in a config
_DEEPEST_CONFIG = 20
_SMALL = 1 << 26  # bytes; below it the ratio is not looked at


def read_state(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (CPU, as stored) and text metadata of a .safetensors, .pth or .onnx file.

    The weights are found under ``params_ema``, ``params``, ``state_dict``, ``model`` or bare, and lose prefixes such as
    ``module.``. A ``config`` mapping beside them becomes metadata. ONNX gives arcface_torch's keys (see
    ``onnx_reader``).
    Raises MissingWeights, CorruptWeights, UnsafeWeights or UnsupportedWeights, each naming the file.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingWeights(f"There is no file {path}.")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as exc:
        raise CorruptWeights(f"{path} cannot be read ({exc.strerror}); check its permissions and its disk.") from exc
    refuse_impostors(path, head)
    if _is_safetensors(head):
        return _read_safetensors(path)
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return _read_torch(path)
    if path.suffix.lower() == ".onnx":
        from .onnx_reader import read_onnx

        return read_onnx(path)
    raise CorruptWeights(f"{path} is not a weight file (neither safetensors, nor torch, nor ONNX). {_remedy(path)}")


def _remedy(path: Path) -> str:
    weight = by_file(path.name)
    if weight is None:
        return "Get it again from where it came."
    size = f"The published file has {weight.bytes} bytes, this one {path.stat().st_size}. " if weight.bytes else ""
    again = f"Delete it and run: python -m idcodeformer models download {weight.name}"
    return size + (again if weight.urls or weight.archive else f"Get it again from {weight.source}")


def refuse_impostors(path: Path, head: bytes) -> None:
    """Raise CorruptWeights for what is often saved under a weight file's name: nothing, a web page, a pointer."""
    if not head:
        raise CorruptWeights(f"{path} is empty (0 bytes). {_remedy(path)}")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise CorruptWeights(f"{path} is a web page saved under this name, not weights. Download the file itself.")
    if text.startswith(b"version https://git-lfs"):
        raise CorruptWeights(f"{path} is a Git LFS pointer, not weights. Run 'git lfs pull' or download the file.")


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            # Copied out of the memory map: a file replaced later must not change (or crash) a network in use.
            state = {key: file.get_tensor(key).clone() for key in file.keys()}
            metadata = dict(file.metadata() or {})
    except (SafetensorError, ValueError, TypeError, AttributeError, OSError, RuntimeError) as exc:
        raise CorruptWeights(f"{path} is damaged or cut off ({exc}). {_remedy(path)}") from exc
    return strip_prefix(state), metadata


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The text metadata of a safetensors file alone; its tensors are not read. Raises CorruptWeights."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, ValueError, TypeError, AttributeError, OSError, RuntimeError) as exc:
        raise CorruptWeights(f"{path} is damaged or cut off ({exc}). Download it again.") from exc


def _read_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with path.open("rb") as file:
            refuse_unsafe(file, path)
        with path.open("rb") as file:  # given the path, torch goes by its ending
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except UnsafeWeights:
        raise
    except Exception as exc:  # pickle and zip readers raise a dozen kinds on damaged input; all mean the same here
        detail = (str(exc).strip().splitlines() or [type(exc).__name__])[0][:160]
        raise CorruptWeights(f"{path} is damaged or cut off ({detail}). {_remedy(path)}") from exc
    state, metadata = _unwrap(loaded, path)
    claimed, size = sum(v.numel() * v.element_size() for v in state.values()), path.stat().st_size
    if claimed > max(_SMALL, _MOST_TENSORS * size):
        raise CorruptWeights(f"{path} has {size} bytes and claims tensors of {claimed}. {_remedy(path)}")
    return state, metadata


def _unwrap(loaded: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not isinstance(loaded, Mapping):
        raise UnsupportedWeights(f"{path} holds a {type(loaded).__name__}, not a dictionary of tensors.")
    found = next((loaded[k] for k in CONTAINERS if isinstance(loaded.get(k), Mapping)), loaded)
    state = {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not state:
        raise UnsupportedWeights(f"{path} holds no tensors, only {', '.join(map(str, list(loaded)[:5])) or 'nothing'}.")
    metadata = {k: loaded[k] for k in ("architecture", "licence") if isinstance(loaded.get(k), str)}
    if isinstance(loaded.get("config"), Mapping) and _is_plain(loaded["config"]):
        metadata["config"] = json.dumps(loaded["config"])
    return strip_prefix(state), metadata


def _is_plain(value: Any) -> bool:
    """True for JSON values of a sane size; one that holds itself, or itself twice many times over, has no end."""
    waiting, count = [(value, 0)], 0
    while waiting:
        (value, depth), count = waiting.pop(), count + 1
        if count + len(waiting) > _MOST_CONFIG or depth > _DEEPEST_CONFIG:
            return False
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            waiting += [(inner, depth + 1) for inner in value.values()]
        elif isinstance(value, (list, tuple)):
            waiting += [(inner, depth + 1) for inner in value]
        elif not isinstance(value, (str, int, float, type(None))):
            return False
    return True


def strip_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes that wrappers and trainers put before every key (``module.``, ``params_ema.``, ``net_g.``).

    Where several copies lie side by side (params beside params_ema, net_g beside net_d) the best one is taken. A
    prefix before numbers alone (``model.0.weight`` of ESRGAN) belongs to the network and stays.
    """
    while True:
        tops = {key.split(".", 1)[0] for key in state}
        best = next((prefix for prefix in PREFIXES if prefix in tops), None)
        if best is None or not tops <= {*PREFIXES, *BESIDE}:
            return {key.removeprefix("module."): value for key, value in state.items()}
        inner = {key[len(best) + 1 :]: value for key, value in state.items() if key.startswith(best + ".")}
        if not inner or any(key.split(".", 1)[0].isdigit() for key in inner):
            return dict(state)
        state = inner
