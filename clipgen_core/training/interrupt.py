"""Requests to stop a training: it finishes its step, saves a checkpoint and ends.

Schedulers send SIGTERM before they take a machine away. A training of several processes stops when any of
them is requested to. Where no signal reaches the workers, as on Ray, the launcher registers another source of
requests by `stop_when`.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

from clipgen_core.errors import ClipgenError

_other_source: ContextVar[Callable[[], bool]] = ContextVar("other_source", default=bool)


class Interrupted(ClipgenError):
    """A training was requested to stop and has saved a checkpoint."""


class Request:
    """Tells whether this process was requested to stop, by SIGTERM or by the source of `stop_when`."""

    signalled = False

    def stop_requested(self) -> bool:
        """Whether a stop was requested until now."""
        return self.signalled or _other_source.get()()


@contextmanager
def sigterm(then: Callable[[], object] | None = None) -> Iterator[Request]:
    """Within the `with`, SIGTERM sets `Request.signalled` instead of ending the process.

    Only the main thread can receive signals; in other threads this has no effect.
    """
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def request_stop(_signal: int, _frame: FrameType | None) -> None:
        request.signalled = True
        if then:
            then()

    previous = signal.signal(signal.SIGTERM, request_stop)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def stop_when(stop_requested: Callable[[], bool]) -> Iterator[None]:
    """Within the `with`, a training of this thread also stops when `stop_requested` returns True."""
    token = _other_source.set(stop_requested)
    try:
        yield
    finally:
        _other_source.reset(token)
