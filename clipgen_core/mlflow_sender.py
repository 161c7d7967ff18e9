"""Sends what a run logs to MLflow from a thread of its own, in order; while MLflow is away, it tries again.

Knows when to try again and when to give up; knows nothing of what is sent.
"""

import threading
import time
from collections import deque
from collections.abc import Callable

from clipgen_core import logs
from clipgen_core.tracking import why

PAUSE = 2.0  # seconds between two attempts
TRIES = 3  # of an entry that MLflow refuses, though it answers


class Sender:
    """A queue of entries and the thread that sends them.

    An entry may be sent twice, if only the answer to it was lost.

    Args:
        where: The address of MLflow, for messages.
        answers: Asks MLflow something; raises an exception if it is away.
    """

    def __init__(self, where: str, answers: Callable[[], object]) -> None:
        self.where, self.answers = where, answers
        self.waiting = deque[tuple[str, Callable[[], object]]]()
        self.changed = threading.Condition()
        self.thread: threading.Thread | None = None
        self.away = False

    def put(self, what: str, send: Callable[[], object]) -> None:
        """Send an entry after those before it, without waiting for that.

        Args:
            what: Names the entry in messages.
            send: Sends it; it must have the same effect if it is called twice.
        """
        with self.changed:
            self.waiting.append((what, send))
            self.changed.notify_all()
            if self.thread is None:
                self.thread = threading.Thread(target=self._work, name="MLflow", daemon=True)
                self.thread.start()

    def flush(self, seconds: float) -> None:
        """Wait until all entries are sent. What is left is still tried as long as this process lives.

        Args:
            seconds: How long to wait at the most.
        """
        with self.changed:
            sent = self.changed.wait_for(lambda: not self.waiting, seconds)
            left = len(self.waiting)
        if not sent:
            logs.line(
                f"warning: MLflow at {self.where} is still away: {left} of the run's entries are lost "
                "if it is not back before this process ends; checkpoints and reports are not affected"
            )

    def _work(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting)
                what, send = self.waiting[0]
            self._deliver(what, send)
            with self.changed:
                self.waiting.popleft()
                self.changed.notify_all()

    def _deliver(self, what: str, send: Callable[[], object]) -> None:
        refused = 0
        while True:
            try:
                send()
                return self._back()
            except Exception as error:
                if self._is_away(error):
                    refused = 0
                else:
                    refused += 1
                if refused == TRIES:
                    return logs.line(f"warning: MLflow at {self.where} did not take {what}: {why(error)}")
            time.sleep(PAUSE)

    def _is_away(self, error: Exception) -> bool:
        """Whether an entry failed because MLflow is away, which is said once, or because of the entry."""
        try:
            self.answers()
        except Exception:
            if not self.away:
                logs.line(
                    f"warning: MLflow at {self.where} does not answer ({why(error)}): the run goes on, and "
                    "what it logs is sent when MLflow is back"
                )
            self.away = True
            return True
        self._back()
        return False

    def _back(self) -> None:
        if self.away:
            self.away = False
            logs.line(f"MLflow at {self.where} is back: {len(self.waiting)} entries are sent now")
