"""What a piece of work takes on a device: time, memory, kernels and operations."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

Work = Callable[[], object]
WARM_UP = 3


@dataclass(frozen=True)
class Spent:
    """The median seconds of one call, its peak of device memory in bytes, kernels and operations.

    Memory and kernels are 0 on a CPU. Operations are those of matrix products, convolutions and attention.
    """

    seconds: float
    memory: int
    kernels: int
    operations: int

    def share(self, peak: float) -> float:
        """The share of a peak, in operations a second, that it reached."""
        return self.operations / self.seconds / peak


def spent(work: Work, device: torch.device, rounds: int, *, counted: bool = True) -> Spent:
    """Measure some work after a warm-up.

    Args:
        work: Takes the same each time.
        device: Where it runs.
        rounds: How often it is timed.
        counted: Whether operations and kernels are counted; those of compiled work cannot be.

    Returns:
        What it takes.
    """
    for _ in range(WARM_UP):
        work()
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    times = [seconds(work, device) for _ in range(rounds)]
    memory = torch.cuda.max_memory_allocated(device) if on_gpu else 0
    if not counted:
        return Spent(statistics.median(times), memory, 0, 0)
    with FlopCounterMode(display=False) as counter:
        work()
    kernels = _kernels(work, device) if on_gpu else 0
    return Spent(statistics.median(times), memory, kernels, counter.get_total_flops())


def seconds(work: Work, device: torch.device) -> float:
    """Wall time of one call until the device has finished.

    Args:
        work: The call.
        device: Where it runs.

    Returns:
        The time.
    """
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _kernels(work: Work, device: torch.device) -> int:
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        _wait(device)
    return sum(event.device_type == DeviceType.CUDA for event in profiler.events() or ())


def matrix_peak(device: torch.device, side: int, rounds: int) -> float:
    """Operations a second of a bf16 product of two square matrices of random numbers.

    Args:
        device: Where it runs; in fp32 on a CPU.
        side: Of the matrices.
        rounds: How often it is timed.

    Returns:
        2 * side^3 over the median time.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    return 2 * side**3 / spent(lambda: a @ b, device, rounds, counted=False).seconds


def copy_speed(device: torch.device, rounds: int, size: int) -> float:
    """Bytes a second, read and written, of a copy within the memory of a device.

    Args:
        device: Where it runs.
        rounds: How often it is timed.
        size: Bytes to copy.

    Returns:
        2 * size over the median time.
    """
    one, other = torch.empty(2, size, dtype=torch.uint8, device=device)
    return 2 * size / spent(lambda: other.copy_(one), device, rounds, counted=False).seconds
