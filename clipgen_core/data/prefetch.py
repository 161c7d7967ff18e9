"""Work done ahead of time in threads, so that nobody waits for data that could have been there."""

import collections
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def bounded_map(call: Callable[[T], R], items: Iterable[T], workers: int, ahead: int) -> Iterator[R]:
    """As `map`, in threads; no more than `ahead` results wait to be taken."""
    waiting: collections.deque[Future[R]] = collections.deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append(pool.submit(call, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


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
