"""All computation of a model in one thread, whichever threads ask for it.

Pieces of work come one after the other, those of one kind together, and between two of them all samplings
that run take a step together. So callers share one batch. And OpenMP has one pool of threads: it gives every
thread that computes a pool of its own, and two pools on the same cores took twice the time of one.

Knows what takes turns; knows nothing of prompts and images.
"""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from clipgen_core.generation.sampling import Job, OnStep, Sampler

Item = TypeVar("Item", bound=Sequence[Any] | Tensor)
Result = TypeVar("Result")
Rows = TypeVar("Rows", list[Any], np.ndarray)

CALLER: ContextVar[str] = ContextVar("caller", default="")
"""Who asks, for servers: requests of one caller share its turns. Without a name, every call has its own."""

IDLE = 10.0  # seconds after which the thread ends; the next call starts another
AT_ONCE = 64  # rows of a piece, or of several that are done together, before others get their turn


class Worker:
    """Computes in a thread that runs while there is something to do.

    Where only the main thread asks, as in scripts, it computes by itself.

    Args:
        sampler: What is advanced.
    """

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self._running = dict[Job, Waiting]()
        self._turn = threading.RLock()  # of the thread that computes
        self._asked = threading.Condition()
        self._pieces = list[Piece]()
        self._thread: threading.Thread | None = None

    def run(self, work: Callable[[], Result]) -> Result:
        """Do a piece of work when it is its turn.

        Args:
            work: Does it.

        Returns:
            What it returns; what it raises is raised here.
        """
        return self.together(lambda _: [work()], ())

    def together(self, compute: Callable[[list[Item]], list[Result]], item: Item) -> Result:
        """Do a piece of work when it is its turn, together with others of the same kind.

        Args:
            compute: Gives the result of each of several items, as it does for each alone.
            item: Of this piece; its length counts.

        Returns:
            The result of the item; what `compute` raises is raised here.
        """
        if self._is_here():
            with self._turn:
                return compute([item])[0]
        piece = Piece(compute, item)
        self._ask(piece)
        try:
            result: Result = piece.future.result()
            return result
        except BaseException:
            piece.future.cancel()  # where this thread was interrupted
            raise

    def sample(self, job: Job, on_step: OnStep | None = None) -> Tensor:
        """Sample together with all others who do.

        Args:
            job: What to sample.
            on_step: Called in this thread with the codes so far, int64 [n, t], after each step; where it
                takes longer than a step, after the latest. An error that it raises ends the sampling.

        Returns:
            The codes, int64 [n, t].

        Raises:
            Busy: Too many samplings wait.
        """
        job.watched, waiting, ended = on_step is not None, Waiting(), False
        self.run(lambda: self._begin(job, waiting))
        try:
            while not ended:
                self._wait_for_step(waiting)
                ended = waiting.ended
                if on_step and waiting.latest:
                    on_step(waiting.latest.pop())
        finally:
            self.run(lambda: self._end(job))
        if waiting.error:
            raise waiting.error
        return job.codes

    def _wait_for_step(self, waiting: "Waiting") -> None:
        if self._is_here():
            with self._turn:
                self._advance()
        elif not waiting.news.is_set():
            self._ask(None)  # it may have begun to wait before this thread's job began
            waiting.news.wait()
        waiting.news.clear()

    def _is_here(self) -> bool:
        """Whether this thread computes."""
        here, thread = threading.current_thread(), self._thread
        return here is thread or (here is threading.main_thread() and not (thread and thread.is_alive()))

    def _ask(self, piece: "Piece | None") -> None:
        with self._asked:
            if piece:
                self._pieces.append(piece)
            if self._thread is None or not self._thread.is_alive():  # as in a forked process
                self._thread = threading.Thread(target=self._loop, name="clipgen", daemon=True)
                self._thread.start()
            self._asked.notify()

    def _begin(self, job: Job, waiting: "Waiting") -> None:
        self.sampler.add(job)
        self._running[job] = waiting

    def _end(self, job: Job) -> None:
        self.sampler.remove(job)
        self._running.pop(job, None)

    def _loop(self) -> None:
        while True:
            with self._asked:
                if not (self._pieces or self._running or self._asked.wait(IDLE)):
                    self._thread = None
                    return
                pieces = list(self._pieces)
                self._pieces.clear()
            with self._turn:
                for alike in _of_one_kind(pieces):
                    _answer(alike)
                if self._running:
                    self._advance()

    def _advance(self) -> None:
        """A step of all samplings; tell those who wait."""
        try:
            self.sampler.advance()
        except BaseException as error:  # such as too little memory: nobody's codes are known to be right
            for job, waiting in list(self._running.items()):
                waiting.end(error)
                self._end(job)
            return
        for job, waiting in list(self._running.items()):
            if job.watched:
                waiting.show(job.codes.clone())
            if job.done:
                waiting.end()
                del self._running[job]


class Piece:
    """A piece of work.

    Args:
        compute: See `Worker.together`.
        item: See `Worker.together`.
    """

    def __init__(self, compute: Callable[[list[Any]], list[Any]], item: Any) -> None:
        self.compute, self.item, self.future = compute, item, Future[Any]()


class Waiting:
    """What a caller waits for: news of its sampling.

    news: Set when there is some.
    latest: The codes that the caller has not looked at yet; newer ones replace them.
    ended: Whether no news will follow.
    error: What ended it early.
    """

    def __init__(self) -> None:
        self.news, self.latest, self.ended = threading.Event(), deque[Tensor](maxlen=1), False
        self.error: BaseException | None = None

    def show(self, codes: Tensor) -> None:
        """Codes of a sampling that goes on."""
        self.latest.append(codes)
        self.news.set()

    def end(self, error: BaseException | None = None) -> None:
        """The sampling is complete, or failed."""
        self.error, self.ended = error, True
        self.news.set()


def _of_one_kind(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Pieces that are done together, in the order in which the first of each was asked for."""
    groups = list[list[Piece]]()
    for piece in pieces:
        for group in groups:
            size = sum(len(one.item) for one in group) + len(piece.item)
            if piece.compute == group[0].compute and size <= AT_ONCE:
                group.append(piece)
                break
        else:
            groups.append([piece])
    return groups


def _answer(pieces: Sequence[Piece]) -> None:
    pieces = [piece for piece in pieces if piece.future.set_running_or_notify_cancel()]
    try:
        results = pieces[0].compute([piece.item for piece in pieces]) if pieces else []
        for piece, result in zip(pieces, results, strict=True):
            piece.future.set_result(result)
    except BaseException as error:
        for piece in pieces:
            piece.future.set_exception(error)


def parted(rows: Rows, given: Sequence[Sized]) -> list[Rows]:
    """What was computed for several callers together.

    Args:
        rows: All of it, one caller after the other.
        given: What each asked for, as many as its rows.

    Returns:
        Each caller's.
    """
    borders = itertools.accumulate((len(one) for one in given), initial=0)
    return [rows[start:end] for start, end in itertools.pairwise(borders)]


def elsewhere(work: Callable[[], Result]) -> Result:
    """Do something in a thread that ends with it, and with it OpenMP's pool for it.

    For servers, which load a model in one thread and use it in others.

    Args:
        work: Does it.

    Returns:
        What it returns; what it raises is raised here.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()
