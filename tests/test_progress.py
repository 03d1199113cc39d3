"""The one progress bar."""
from __future__ import annotations

import io
import sys

import pytest

from idcodeformer.runtime.progress import ByteProgress, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_every_step_and_a_file_only_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {}
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress_bar(50, "face", "looking", done=10, miniters=1) as bar:
            bar.mininterval = min(bar.mininterval, 1) and bar.mininterval if not stream.isatty() else 0
            for _ in range(40):
                bar.update(1)
        drawn[stream.isatty()] = stream.getvalue()
    assert "looking" in drawn[True] and "50/50" in drawn[True] and "10/50" in drawn[True]
    assert drawn[True].count("\r") > 30 > 4 > drawn[False].count("\r") > 0


def test_bytes_go_on_from_where_a_transfer_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with ByteProgress() as progress:
        progress(1_000_000, 4_000_000, "net.pth")
        progress(4_000_000, 4_000_000, "net.pth")
        assert progress._bar.n == 4_000_000
    assert "net.pth" in stream.getvalue() and "4.00M/4.00M" in stream.getvalue()
    with ByteProgress():
        pass
