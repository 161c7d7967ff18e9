"""Requests to stop a training: it finishes its step, saves a checkpoint and ends.

Schedulers send SIGTERM before they take a machine away, and people press Ctrl-C (SIGINT). A training of
several processes stops when any of them is requested to. Where no signal reaches the workers, as on Ray, the
launcher registers another source of requests by `stop_when`.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# launchers forward a Ctrl-C that the terminal has sent to every process already
IMPATIENT_AFTER = 1.0  # seconds

_other_source: ContextVar[Callable[[], bool]] = ContextVar("other_source", default=bool)


class Request:
    """Tells whether this process was requested to stop, by a signal or by the source of `stop_when`.

    Attributes:
        signal: The first signal, or None.
    """

    signal: int | None = None

    def stop_requested(self) -> bool:
        """Whether a stop was requested until now."""
        return self.signal is not None or _other_source.get()()


@contextmanager
def stop_signals(then: Callable[[], object] | None = None) -> Iterator[Request]:
    """Within the `with`, SIGTERM and Ctrl-C set `Request.signal` instead of ending the process.

    A second signal, a second after the first or later, raises KeyboardInterrupt, and nothing more is saved.
    Only the main thread can receive signals; in other threads this has no effect.

    Args:
        then: Called at each signal, to forward it.

    Yields:
        The request.
    """
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    first = 0.0

    def request_stop(number: int, _frame: FrameType | None) -> None:
        nonlocal first
        if request.signal is None:
            request.signal, first = number, time.monotonic()
        elif time.monotonic() - first > IMPATIENT_AFTER:
            raise KeyboardInterrupt
        if then:
            then()

    previous = {number: signal.signal(number, request_stop) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def stop_when(stop_requested: Callable[[], bool]) -> Iterator[None]:
    """Within the `with`, a training of this thread also stops when `stop_requested` returns True."""
    token = _other_source.set(stop_requested)
    try:
        yield
    finally:
        _other_source.reset(token)
