"""Requests in threads: their places, and how they are given up. The calls are slow at the test's will."""

import asyncio
import threading
import time
from collections.abc import Callable

import pytest
import torch

from clipgen_core.generation.sampling import OnStep
from clipgen_core.serving import work as module
from clipgen_core.serving.work import Full, Job, Stopped, Work


class Slow:
    """A call that takes steps until it may end."""

    def __init__(self) -> None:
        self.began, self.may_end = threading.Event(), threading.Event()

    def __call__(self, on_step: OnStep) -> str:
        self.began.set()
        while not self.may_end.wait(0.005):
            on_step(torch.tensor([[1, -1]]))
        return "done"


async def ended(job: Job[str]) -> str:
    async for _ in job.codes():
        pass
    return job.result()


async def until(holds: Callable[[], bool]) -> None:
    limit = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < limit
        await asyncio.sleep(0.005)


def test_as_many_wait_as_may_and_a_place_is_free_when_a_job_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 1)

    async def check() -> None:
        work, first, second = Work(waiting=1), Slow(), Slow()
        running, waiting = work.start(first), work.start(second)
        await until(first.began.is_set)
        assert work.waiting == 1 and not second.began.is_set()
        with pytest.raises(Full):
            work.start(Slow())
        first.may_end.set()
        assert await ended(running) == "done"
        third = Slow()
        third.may_end.set()
        last = work.start(third)
        second.may_end.set()
        assert [await ended(waiting), await ended(last)] == ["done", "done"]
        assert work.waiting == 0

    asyncio.run(check())


def test_a_job_that_is_given_up_ends_with_its_next_step_or_before_it_began(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 1)

    async def check() -> None:
        work, never = Work(waiting=1), Slow()
        running, waiting = work.start(Slow()), work.start(never)
        assert (await anext(running.codes())).tolist() == [1, -1]
        for job in (waiting, running):
            job.stop()
            with pytest.raises(Stopped):
                await ended(job)
        assert not never.began.is_set()
        free = Slow()
        free.may_end.set()
        assert await ended(work.start(free)) == "done"

    asyncio.run(check())


def test_a_server_that_stops_finishes_what_is_sampled_and_refuses_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 2)

    async def check() -> None:
        work, quick, endless = Work(waiting=1), Slow(), Slow()
        finishes, lasts, waits = work.start(quick), work.start(endless), work.start(Slow())
        await until(lambda: quick.began.is_set() and endless.began.is_set())
        work.close()
        with pytest.raises(Stopped):
            await ended(waits)
        with pytest.raises(Stopped):
            work.start(Slow())
        quick.may_end.set()
        assert await ended(finishes) == "done"
        work.abort()
        with pytest.raises(Stopped):
            await ended(lasts)

    asyncio.run(check())


def test_an_error_of_the_call_is_raised_where_its_result_is_asked_for() -> None:
    def fails(_: OnStep) -> str:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        asyncio.run(_started(fails))


async def _started(call: Callable[[OnStep], str]) -> str:
    return await ended(Work(0).start(call))
