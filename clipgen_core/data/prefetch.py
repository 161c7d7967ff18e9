"""Load data ahead of time in threads, so that the model does not wait for it."""

import collections
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
FEWEST = 4  # threads of a pool, which may also wait for a store
HEAVIEST = 2**28  # bytes of pending results


def pool_size() -> int:
    """Threads that decode images: one a core of this machine, which processes of one training share."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), FEWEST)


def bounded_map(
    call: Callable[[T], R],
    items: Iterable[T],
    workers: int,
    ahead: int,
    weight: Callable[[T], int] = lambda _: 0,
) -> Iterator[R]:
    """As `map`, but in threads and with a bounded number of pending results.

    Args:
        call: The function.
        items: Its arguments, one a call.
        workers: Number of threads.
        ahead: Calls that may be running or finished before their results are taken.
        weight: About how many bytes an item and its result take; more than HEAVIEST do not wait.

    Yields:
        The results, in the order of the items.
    """
    waiting: collections.deque[tuple[Future[R], int]] = collections.deque()
    held = 0
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append((pool.submit(call, item), weight(item)))
            held += waiting[-1][1]
            while waiting and (len(waiting) > ahead or held > HEAVIEST):
                result, weighed = waiting.popleft()
                held -= weighed
                yield result.result()
        while waiting:
            yield waiting.popleft()[0].result()
    finally:  # after an error, or where no one takes more, calls may still wait for a store that is away
        pool.shutdown(wait=False, cancel_futures=True)


def prefetch(
    produce: Callable[[int], Any], start: int, stop: int, ahead: int = 4
) -> Iterator[tuple[int, Any]]:
    """Call `produce` for a range of steps in one other thread, a few steps ahead.

    Args:
        produce: The function of a step; what it raises is raised here.
        start: The first step.
        stop: The step after the last.
        ahead: Results that may wait to be taken.

    Yields:
        (step, produce(step)), in order.
    """
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
