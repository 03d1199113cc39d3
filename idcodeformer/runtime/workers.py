"""Threads for operators that use one core each: the pieces of one layer run side by side."""
from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Callable, Iterable, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def _use_one_core() -> bool:
    """Hold torch's operators of the calling thread to one core. False where this process offers no such way.

    ``torch.set_num_threads`` would change the setting of every later thread of the process; OpenMP's own call concerns
    the calling thread alone.
    """
    torch.get_num_threads()  # torch sets the thread up at its first question, and would undo the setting afterwards
    try:
        set_threads = ctypes.CDLL(None).omp_set_num_threads
    except (AttributeError, OSError, TypeError):  # no OpenMP in the global namespace; Windows has no such namespace
        return torch.get_num_threads() == 1
    set_threads(1)
    return torch.get_num_threads() == 1


class Workers:
    """As many threads as torch uses, each held to one core; one thread where torch cannot be held to one core.

    Work runs in inference mode and never in the calling thread, since NNPACK keeps scratch memory for every thread that
    calls it. The threads end, and that memory with them, when the object does.
    """

    def __init__(self) -> None:
        self.asked = torch.get_num_threads()
        self.count = self.asked
        self._start()
        if self.count > 1 and not all(self.run(lambda _: _use_one_core(), range(self.count))):
            self.count = 1
            self._start()

    def _start(self) -> None:
        self._pool = ThreadPoolExecutor(self.count, "idcodeformer", _use_one_core if self.count > 1 else None)

    def run(self, work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """``[work(item) for item in items]``. All are through when this returns or raises the first error."""

        def one(item: Item) -> Result:
            with torch.inference_mode():
                return work(item)

        futures = [self._pool.submit(one, item) for item in items]
        wait(futures)
        return [future.result() for future in futures]
