import gc
import multiprocessing
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from clipgen_core.generation import worker as module
from clipgen_core.generation.sampling import Job, Sampler, sample_codes
from clipgen_core.generation.worker import Worker, elsewhere
from clipgen_core.settings.sampling import SamplingConfig
from tests.core.generation.test_batch import DIM, MODELS, POSITIONS

CONFIG = SamplingConfig()


@pytest.fixture
def worker() -> Worker:
    return Worker(Sampler(MODELS["raster"], share=0.5))


def job(worker: Worker, seed: int) -> Job:
    return worker.sampler.job(embedding(seed), [seed], CONFIG, caller=str(seed))


def embedding(seed: int) -> torch.Tensor:
    return torch.randn(1, 1, DIM, generator=torch.Generator().manual_seed(seed))


def alone(seed: int) -> torch.Tensor:
    return sample_codes(MODELS["raster"], embedding(seed), [seed], CONFIG)


def test_the_main_thread_computes_by_itself_and_others_share_one_thread(worker: Worker) -> None:
    where = threading.current_thread
    assert worker.run(where) is threading.main_thread()
    with ThreadPoolExecutor(4) as threads:
        computing = set(threads.map(lambda _: worker.run(where), range(20)))
    assert len(computing) == 1 and computing.isdisjoint({threading.main_thread()})
    assert {worker.run(where)} == computing  # while the thread lives, the main one asks it, too


def test_callers_in_threads_get_what_they_would_get_alone(worker: Worker) -> None:
    with ThreadPoolExecutor(8) as threads:
        codes = list(threads.map(lambda seed: worker.sample(job(worker, seed)), range(24)))
    assert all(torch.equal(codes[seed], alone(seed)) for seed in range(24))
    assert torch.equal(worker.sample(job(worker, 3)), alone(3))
    assert not worker.sampler.jobs


def in_a_thread(work: Callable[[], object]) -> object:
    return elsewhere(work)


def here(work: Callable[[], object]) -> object:
    return work()


@pytest.mark.parametrize("run", [in_a_thread, here])
def test_progress_is_seen_and_an_error_of_the_caller_ends_its_sampling(
    worker: Worker, run: Callable[[Callable[[], object]], object]
) -> None:
    seen = list[torch.Tensor]()
    codes = run(lambda: worker.sample(job(worker, 1), seen.append))
    assert torch.equal(seen[-1], codes) and torch.equal(codes, alone(1))  # type: ignore[arg-type]
    assert 1 <= len(seen) <= POSITIONS

    def stop(codes: torch.Tensor) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        run(lambda: worker.sample(job(worker, 2), stop))
    assert not worker.sampler.jobs and not worker._running
    assert torch.equal(run(lambda: worker.sample(job(worker, 3))), alone(3))  # type: ignore[arg-type]


def test_an_error_of_a_step_reaches_all_who_wait_and_the_next_work(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise MemoryError("no room")

    with monkeypatch.context() as patch, ThreadPoolExecutor(3) as threads:
        patch.setattr(worker.sampler, "advance", fail)
        for future in [threads.submit(worker.sample, job(worker, seed)) for seed in range(3)]:
            with pytest.raises(MemoryError, match="no room"):
                future.result()
    assert torch.equal(elsewhere(lambda: worker.sample(job(worker, 1))), alone(1))


def test_pieces_of_one_kind_that_wait_are_done_together(worker: Worker) -> None:
    sizes, begun, open_now = list[int](), threading.Event(), threading.Event()

    def lengths(given: list[list[int]]) -> list[int]:
        sizes.append(len(given))
        return [len(one) for one in given]

    with ThreadPoolExecutor(12) as threads:
        blocked, futures = threads.submit(worker.run, lambda: begun.set() or open_now.wait(30)), []
        assert begun.wait(30)
        for waiting, count in enumerate((3, 20, 50, 1), start=1):
            futures.append(threads.submit(worker.together, lengths, [0] * count))
            while len(worker._pieces) < waiting:
                time.sleep(0.001)
        open_now.set()
        assert [future.result() for future in futures] == [3, 20, 50, 1] and blocked.result()
    assert sorted(sizes) == [1, 3]  # no more than 64 rows at once


def test_an_error_of_one_kind_of_piece_is_told_to_those_who_asked(worker: Worker) -> None:
    with ThreadPoolExecutor(2) as threads:
        bad = threads.submit(worker.run, lambda: 1 / 0)
        good = threads.submit(worker.run, lambda: 1)
        with pytest.raises(ZeroDivisionError):
            bad.result()
        assert good.result() == 1


def test_the_thread_ends_when_nothing_is_asked(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE", 0.05)
    first = elsewhere(lambda: worker.run(threading.current_thread))
    first.join(10)
    assert not first.is_alive()
    second = elsewhere(lambda: worker.run(threading.current_thread))
    assert second is not first
    second.join(10)
    gc.collect()
    assert torch.equal(worker.sample(job(worker, 5)), alone(5))


def test_a_forked_process_starts_a_thread_of_its_own(worker: Worker) -> None:
    elsewhere(lambda: worker.run(threading.current_thread))
    pipe, other = multiprocessing.get_context("fork").Pipe()

    def answer() -> None:
        other.send(elsewhere(lambda: worker.run(lambda: "done")))

    process = multiprocessing.get_context("fork").Process(target=answer)
    process.start()
    assert pipe.poll(30) and pipe.recv() == "done"
    process.join()
