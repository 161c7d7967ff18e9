"""Timing that survives a noisy machine: both sides in turn, medians, the ratio pair by pair."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from clipgen_core.device import default_device, fast_dtype


@dataclass(frozen=True)
class Row:
    """One measured comparison. `value` is what the bar is about, in `unit`."""

    benchmark: str
    what: str
    value: float
    unit: str
    bar: str
    detail: str


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begun = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def in_turn(*works: Callable[[], object], rounds: int = 5, warm_up: int = 1) -> list[list[float]]:
    """Seconds of each work in each round, the works taking turns."""
    for _ in range(warm_up):
        for work in works:
            work()
    measured = [[seconds(work) for work in works] for _ in range(rounds)]
    return [list(column) for column in zip(*measured, strict=True)]


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median over rounds of slow / fast."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def matmul_peak(size: int = 2048) -> Callable[[], object]:
    """A matrix product of the fast type, of 2 * size^3 operations: what the machine can do at best."""
    device = default_device()
    a, b = torch.randn(2, size, size, device=device, dtype=fast_dtype(device))
    return lambda: a @ b
