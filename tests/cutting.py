"""Commands that are cut off by signals, in processes of their own."""
from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

INT, TERM = signal.SIGINT, signal.SIGTERM
HUP, KILL = (getattr(signal, name, INT) for name in ("SIGHUP", "SIGKILL"))
ALL = [INT, TERM, HUP, KILL]
CODES = {INT: 130, TERM: 143, HUP: 129, KILL: -9}


class Cutting:
    """A command that is cut off again and again, each time a little after it got further than before."""

    def __init__(
        self, line: Sequence[object], folder: Path, progress: Callable[[], int], most: float = 0.3, **env: str
    ):
        self.line, self.folder = [sys.executable, *map(str, line)], folder
        root = str(Path(__file__).resolve().parent.parent)
        self.env = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"} | env
        self.progress, self.dice, self.most = progress, random.Random(16), most

    def cut(self, number: int, steps: int = 1) -> tuple[int, str]:
        """Exit status and words of a run that gets ``number`` once ``progress()`` has grown by ``steps``."""
        aim, end = self.progress() + steps, time.monotonic() + 400
        process = subprocess.Popen(self.line, cwd=self.folder, env=self.env, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True)  # fmt: skip
        while process.poll() is None and self.progress() < aim and time.monotonic() < end:
            time.sleep(0.005)
        time.sleep(self.dice.random() * self.most)
        process.send_signal(number)
        told = process.communicate(timeout=300)[0]
        assert "Traceback" not in told, told
        return process.returncode, told

    def ends(self) -> str:
        """The words of a run that nobody cuts off."""
        done = subprocess.run(self.line, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
