"""Progress bars of commands and trainings, all of one kind: tqdm on standard error, sparse where that is a file."""
from __future__ import annotations

import sys
from typing import Any

_LIVE, _FILE = 0.1, 30.0  # s between two drawings: on a terminal, and where every drawing is a line of a log


def progress_bar(total: int | None, unit: str, what: str = "", done: int = 0, **settings: Any) -> Any:
    """A tqdm bar that has ``done`` of ``total`` units behind it; ``settings`` are tqdm's own. Close it when through."""
    from tqdm import tqdm

    live = bool(getattr(sys.stderr, "isatty", lambda: False)())
    usual = {"desc": what or None, "initial": done, "dynamic_ncols": True, "mininterval": _LIVE if live else _FILE}
    return tqdm(total=total, unit=unit, file=sys.stderr, **usual | settings)


class ByteProgress:
    """``progress(done, total, what)`` in bytes on a bar of its own; total 0 = unknown. A context manager."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, done: int, total: int, what: str) -> None:
        if self._bar is None:
            self._bar = progress_bar(total or None, "B", what, done, unit_scale=True)
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> ByteProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
