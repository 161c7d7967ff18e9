"""Batches made ahead of time in a thread, so that training never waits for data it could have had."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any


def prefetch(
    produce: Callable[[int], Any], start: int, stop: int, ahead: int = 4
) -> Iterator[tuple[int, Any]]:
    """(step, produce(step)) in order, computed in one thread a few steps ahead."""
    ready: queue.Queue[tuple[int, Any, BaseException | None]] = queue.Queue(ahead)
    closed = threading.Event()

    def put(item: tuple[int, Any, BaseException | None]) -> None:
        while not closed.is_set():
            try:
                return ready.put(item, timeout=0.2)
            except queue.Full:
                continue

    def work() -> None:
        for step in range(start, stop):
            if closed.is_set():
                return
            try:
                put((step, produce(step), None))
            except BaseException as error:
                return put((step, None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        for _ in range(start, stop):
            step, batch, error = ready.get()
            if error:
                raise error
            yield step, batch
    finally:
        closed.set()
