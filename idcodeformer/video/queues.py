"""Work beside each other in bounded queues: reading goes ahead, writing comes behind."""
from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()


def ahead(items: Iterable[T], most: int) -> Iterator[T]:
    """``items``, made by a thread that is at most ``most`` of them ahead. What it raises is raised here."""
    waiting: queue.Queue[Any] = queue.Queue(most)
    stop = threading.Event()

    def work() -> None:
        try:
            for item in items:
                while not stop.is_set():
                    with suppress(queue.Full):
                        waiting.put((item, None), timeout=0.1)
                        break
                if stop.is_set():
                    return
            end: Any = (_END, None)
        except BaseException as error:  # raised again by whoever takes it
            end = (_END, error)
        while not stop.is_set():
            with suppress(queue.Full):
                waiting.put(end, timeout=0.1)
                return

    thread = threading.Thread(target=work, name="clip-reader", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if item is _END:
                if error is not None:
                    raise error
                return
            yield item
    finally:
        stop.set()
        thread.join()
        close = getattr(items, "close", None)
        if close:
            close()


class Behind:
    """``act(item)`` for each item in a thread, at most ``most`` behind. ``put`` and ``close`` raise what it raised."""

    def __init__(self, act: Callable[[Any], None], most: int):
        self._act = act
        self._waiting: queue.Queue[Any] = queue.Queue(most)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="clip-writer", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while True:
            item = self._waiting.get()
            if item is _END:
                return
            if self._error is None:
                try:
                    self._act(item)
                except BaseException as error:  # raised again by put or close
                    self._error = error

    def put(self, item: Any) -> None:
        self._waiting.put(item)
        if self._error is not None:
            raise self._error

    def close(self, drop: bool = False) -> None:
        """Wait for all that was put; with ``drop`` what has not begun is left."""
        if drop and self._error is None:
            self._error = InterruptedError("dropped")
        self._waiting.put(_END)
        self._thread.join()
        if self._error is not None and not drop:
            raise self._error
