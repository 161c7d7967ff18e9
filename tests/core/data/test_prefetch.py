"""Results of threads: in order, few and light at a time, and none that no one waits for."""

import threading
import time

import pytest

from clipgen_core.data import prefetch
from clipgen_core.data.prefetch import bounded_map


def test_results_keep_the_order_of_the_items() -> None:
    def late(number: int) -> int:
        time.sleep(0.01 * (number % 3))
        return number

    assert list(bounded_map(late, range(20), workers=8, ahead=8)) == list(range(20))


def test_heavy_items_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "HEAVIEST", 100)
    begun: list[int] = []
    results = bounded_map(begun.append, range(20), workers=8, ahead=100, weight=lambda _: 60)
    next(results)
    time.sleep(0.1)
    assert len(begun) <= 2, "a third would be more than 100"
    assert len(list(results)) == 19


def test_after_an_error_nothing_more_is_begun() -> None:
    begun, stop = [], threading.Event()

    def fails(number: int) -> None:
        begun.append(number)
        if number == 0:
            raise OSError("gone")
        stop.wait(0.05)

    with pytest.raises(OSError, match="gone"):
        list(bounded_map(fails, range(100), workers=2, ahead=50))
    assert len(begun) < 10


def test_an_error_waits_for_no_other_call() -> None:
    stop = threading.Event()

    def waits(number: int) -> None:
        if number == 0:
            raise OSError("gone")
        stop.wait(30)

    began = time.monotonic()
    with pytest.raises(OSError, match="gone"):
        list(bounded_map(waits, range(4), workers=4, ahead=4))
    assert time.monotonic() - began < 20
    stop.set()
