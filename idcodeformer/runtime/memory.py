"""Batches sized to the memory that is free, and what happens when the estimate was too bold."""
from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Callable

import torch

from ..errors import OutOfMemory
from ..networks.codeformer import CodeFormerConfig
from ..types import Progress

# Peak of a forward, in feature maps of the full side and nf channels in fp32: 805 MB for the published network. Its
# live tensors alone are 499 MB (274 MB in mixed precision); a measured pass with scratch took 698 to 847 MB.
_MAPS_PER_FACE = 12
_SHARE = 0.7  # of the free memory; the rest is for fragmentation and for what others do meanwhile
# 512-px faces that fill the device: a larger batch only takes memory and answers later. A CPU runs one by one anyway.
_FILLING_FACES = {"cuda": 8, "mps": 4}
_MOST_FACES = 64
_UNKNOWN_FREE = 4 << 30
# How torch, OpenCV, Pillow's decoders and zlib say it, in exceptions of several classes.
_NO_MEMORY = ("not enough memory", "allocate memory", "out of memory", "insufficient memory", "failed to allocate")


def bytes_per_face(config: CodeFormerConfig) -> int:
    """Estimated peak memory of one face in a forward pass, in bytes, weights not counted."""
    return _MAPS_PER_FACE * config.img_size**2 * config.nf * 4


def faces_per_batch(config: CodeFormerConfig, device: torch.device) -> int:
    """Faces per forward: as many as fit the free memory of ``device``, at least 1, at most what fills it."""
    if device.type == "cpu":
        return 1
    relative = 512**2 * 64 / (config.img_size**2 * config.nf)
    useful = int(_FILLING_FACES.get(device.type, 4) * relative)
    fitting = int(free_bytes(device) * _SHARE / bytes_per_face(config))
    return max(1, min(useful, fitting, _MOST_FACES))


def free_bytes(device: torch.device) -> int:
    """Memory that can still be allocated on ``device``, in bytes; torch's own cache counts as free."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps" and hasattr(torch.mps, "recommended_max_memory"):  # since torch 2.5
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    if device.type in ("cpu", "mps"):  # Apple's GPU shares the system's memory
        return min(_system_free(), _container_free())
    backend = getattr(torch, device.type, None)
    if hasattr(backend, "mem_get_info"):
        try:
            return backend.mem_get_info(device)[0]
        except RuntimeError:  # some XPU drivers do not tell
            return _UNKNOWN_FREE
    return _UNKNOWN_FREE  # the system's memory says nothing of a card that has its own


def _system_free() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", {}):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return _UNKNOWN_FREE


def _container_free() -> int:
    """What the control group leaves: a container sees the whole machine in /proc/meminfo, but may not use it."""
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists():
        allowed = limit.read_text(encoding="utf-8").strip()
        if allowed.isdigit():
            return max(0, int(allowed) - int(used.read_text(encoding="utf-8")))
    return 1 << 62


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` means that an allocation failed, on any device (the CPU's raises a bare RuntimeError)."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return any(words in text for words in _NO_MEMORY)


def in_batches(
    total: int, batch: int, step: Callable[[int, int], None], progress: Progress | None = None, what: str = "restoring"
) -> None:
    """Call ``step(start, stop)`` until ``total`` is done; halve the batch where memory runs out, and go on from there.

    ``progress(done, total, what)`` is called after each batch and may raise to cancel. Raises OutOfMemory where not
    even one item fits.
    """
    start = 0
    while start < total:
        stop = min(total, start + batch)
        failure = _attempt(step, start, stop)
        if failure is None:
            start = stop
            if progress:
                progress(start, total, what)
            continue
        if batch == 1 or stop - start == 1:
            raise OutOfMemory(
                f"Memory ran out while {what} a single face ({failure}); close other programs, choose a lower upscale "
                "or precision, or use device cpu."
            )
        batch = (stop - start) // 2


def _attempt(step: Callable[[int, int], None], start: int, stop: int) -> str | None:
    """None, or the first line of the out-of-memory error. Only its text leaves here: the traceback holds tensors."""
    try:
        step(start, stop)
        return None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        failure = str(error).splitlines()[0] if str(error) else type(error).__name__
    gc.collect()
    _empty_caches()
    return failure


def _empty_caches() -> None:
    """Give the memory that torch keeps for later back, on every kind of device that is here."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        torch.xpu.empty_cache()
