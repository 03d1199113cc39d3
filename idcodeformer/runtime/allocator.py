"""How the process asks the system for memory. Only for processes of our own: the setting is global."""
from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc


def keep_pages() -> bool:
    """Let glibc keep freed pages instead of returning large ones, to be cleared by the kernel at their next use.

    Plain torch on the CPU spends half of its time on that. The command line calls this; inside another program leave it
    alone, ``restoration.engine`` gains most of it by reusing its own memory. False where there is no glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
