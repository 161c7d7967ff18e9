"""SIGTERM, as schedulers send it before they take a machine away: finish the step, save, stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from clipgen_core.errors import ClipgenError


class Interrupted(ClipgenError):
    """Training was asked to stop and has saved itself."""


@dataclass
class Request:
    """Whether the process was asked to stop."""

    asked: bool = False


@contextmanager
def sigterm() -> Iterator[Request]:
    """Within the `with`, SIGTERM sets `asked`. Outside the main thread signals stay as they are."""
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(_signal: int, _frame: FrameType | None) -> None:
        request.asked = True

    previous = signal.signal(signal.SIGTERM, ask)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, previous)
