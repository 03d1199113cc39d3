"""Many files through one job: reading goes ahead of the networks, encoding and writing come behind, both bounded.

The networks run in the thread that calls, on one picture at a time, so that results are those of ``RestoreJob.attempt``
one after another; what became of each is told in the order in which they were given.
"""
from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from ..files.reading import pixels_in
from ..types import Progress
from .outcome import Outcome

if TYPE_CHECKING:
    from .job import RestoreJob, Step

_PIXELS = 1 << 25  # of all pictures that are held, 3 to 12 bytes each; a larger one is held alone
_AHEAD = 2  # pictures read ahead of the networks
_BEHIND = 4  # results that are written or wait for it
_WRITERS = 2
_POLL = 0.1  # s between two looks whether the run has ended


class Overlap:
    """One run over many files."""

    def __init__(self, job: RestoreJob):
        self.job = job
        self._changed = threading.Condition()
        self._held: dict[int, tuple[int, Step]] = {}  # number -> pixels, and the file
        self._ended = False

    def run(
        self,
        pairs: Iterable[tuple[Path, Path]],
        done: Callable[[Outcome], None],
        progress: Callable[[int], Progress] | None = None,
    ) -> None:
        """Restore ``pairs`` of (file, relative path of its result without ending).

        ``done(outcome)`` is called in the calling thread, in the order of ``pairs``; ``progress(number)`` gives the
        progress of each. Where that or ``done`` raises, or Ctrl-C comes, what was restored is written and told first.
        """
        files = enumerate(pairs)
        reads: deque[Future[Step]] = deque()
        writes: deque[Future[Outcome]] = deque()
        with ThreadPoolExecutor(1, "reader") as reader, ThreadPoolExecutor(_WRITERS, "writer") as writer:

            def read_on() -> None:
                while len(reads) <= _AHEAD and (file := next(files, None)) is not None:
                    reads.append(reader.submit(self._read, *file))

            try:
                read_on()
                number = 0
                while reads:
                    step = reads.popleft().result()
                    read_on()
                    self.job.work(step, progress(number) if progress else None)
                    writes.append(writer.submit(self._write, number, step))
                    while writes and (len(writes) > _BEHIND or writes[0].done()):
                        done(writes.popleft().result())
                    number += 1
            finally:
                with self._changed:
                    self._ended = True
                    self._changed.notify_all()
                for read in reads:
                    read.cancel()
                while writes:
                    done(writes.popleft().result())

    def _read(self, number: int, pair: tuple[Path, Path]) -> Step:
        self._await(lambda: self._is_unclaimed(pair[1]))
        step = self.job.begin(*pair)
        with self._changed:
            self._held[number] = 0, step
        if step.free is None:
            return step
        size = pixels_in(pair[0])
        self._await(lambda: self._held_pixels() == 0 or self._held_pixels() + size <= _PIXELS)
        with self._changed:
            self._held[number] = size, step
        if not self._ended:
            self.job.read(step)
        return step

    def _await(self, ready: Callable[[], bool]) -> None:
        """Until ``ready()``, or the run has ended. Only files that came before are waited for, so that all go on."""
        with self._changed:
            while not self._ended and not ready():
                self._changed.wait(_POLL)

    def _held_pixels(self) -> int:
        return sum(pixels for pixels, _ in self._held.values())

    def _is_unclaimed(self, target: Path) -> bool:
        """Whether no result on its way could have the name that this target's will."""
        names = [step.free for _, step in self._held.values() if step.free is not None]
        here = [free.name.casefold() for free in names if free.parent == target.parent]
        return not any(name.startswith(target.name.casefold()) for name in here)

    def _write(self, number: int, step: Step) -> Outcome:
        try:
            return self.job.finish(step)
        finally:
            with self._changed:
                del self._held[number]
                self._changed.notify_all()
