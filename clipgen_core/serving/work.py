"""Requests that are sampled in threads: how many at once, how many wait, and how one of them is given up.

Knows threads and asyncio; knows nothing of HTTP and of models. Everything but `Job.on_step` is called in the
event loop.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Generic, TypeVar

from torch import Tensor

from clipgen_core.generation.sampling import OnStep

AT_ONCE = 64  # requests that are sampled; the generator decides how their steps share the processor

Result = TypeVar("Result")


class Full(Exception):
    """As many requests wait as may."""


class Stopped(Exception):
    """The request was given up before it was complete: its client went away, or the server stops."""


class Job(Generic[Result]):
    """One request, which a thread samples as soon as one is free."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._codes: asyncio.Queue[Tensor | None] = asyncio.Queue()
        self._stop = threading.Event()
        self.future: Future[Result]

    def on_step(self, codes: Tensor) -> None:
        """Take the codes so far; the generator calls it after each step.

        Raises:
            Stopped: The request was given up, which ends the sampling.
        """
        if self._stop.is_set():
            raise Stopped
        self._loop.call_soon_threadsafe(self._codes.put_nowait, codes[0])

    async def codes(self) -> AsyncIterator[Tensor]:
        """The codes of the first candidate after each step, int64 [t], until the job ends."""
        while (codes := await self._codes.get()) is not None:
            yield codes

    def result(self) -> Result:
        """What the call returned, after `codes` came to an end.

        Raises:
            Stopped: It was given up. What else the call raised is raised as well.
        """
        try:
            return self.future.result()
        except CancelledError:  # it waited for a thread
            raise Stopped from None

    def stop(self) -> None:
        """Give the request up: it waits no longer, or ends with its next step."""
        self._stop.set()
        self.future.cancel()

    def ended(self) -> None:
        self._codes.put_nowait(None)


class Work:
    """All requests of a server.

    Args:
        waiting: Requests that may wait while AT_ONCE are sampled.
    """

    def __init__(self, waiting: int) -> None:
        self._most = AT_ONCE + waiting
        self._threads = ThreadPoolExecutor(AT_ONCE, "sampling")
        self._jobs: set[Job[Any]] = set()
        self.closed = False

    @property
    def waiting(self) -> int:
        """Requests that wait for a thread."""
        return sum(not job.future.running() for job in list(self._jobs))

    def start(self, call: Callable[[OnStep], Result]) -> Job[Result]:
        """Let a thread process a request, or let it wait for one.

        Args:
            call: Samples; called with what the generator is to call after each step.

        Returns:
            The job. It keeps its place until its thread has ended.

        Raises:
            Full: Too many requests wait.
            Stopped: The server stops.
        """
        if self.closed:
            raise Stopped
        if len(self._jobs) >= self._most:
            raise Full
        job, loop = Job[Result](), asyncio.get_running_loop()
        job.future = self._threads.submit(call, job.on_step)
        self._jobs.add(job)

        def ended(_: Future[Result]) -> None:
            with suppress(RuntimeError):  # the server has ended before
                loop.call_soon_threadsafe(self._ended, job)

        job.future.add_done_callback(ended)
        return job

    def close(self) -> None:
        """Give up what waits, and take no more; what is being sampled goes on."""
        self.closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    def abort(self) -> None:
        """Give up everything."""
        self.close()
        for job in self._jobs:
            job.stop()

    def _ended(self, job: Job[Any]) -> None:
        self._jobs.discard(job)
        job.ended()
