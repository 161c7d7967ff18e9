"""SIGTERM, as schedulers send it before they take a machine away: finish the step, save, stop.

A training of several processes stops when any of them is asked; where no signal reaches a worker (on Ray),
whoever started it says how to ask: `heard`.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

from clipgen_core.errors import ClipgenError

_elsewhere: ContextVar[Callable[[], bool]] = ContextVar("elsewhere", default=bool)


class Interrupted(ClipgenError):
    """Training was asked to stop and has saved itself."""


class Request:
    """Whether somebody asked to stop."""

    signalled = False

    def asked(self) -> bool:
        return self.signalled or _elsewhere.get()()


@contextmanager
def sigterm(then: Callable[[], object] | None = None) -> Iterator[Request]:
    """Within the `with`, SIGTERM is noted and calls `then`. Only the main thread can take signals."""
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(_signal: int, _frame: FrameType | None) -> None:
        request.signalled = True
        if then:
            then()

    previous = signal.signal(signal.SIGTERM, ask)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def heard(asked: Callable[[], bool]) -> Iterator[None]:
    """Within the `with`, a training of this thread also stops when `asked` says so."""
    token = _elsewhere.set(asked)
    try:
        yield
    finally:
        _elsewhere.reset(token)
