"""The device and the floating-point type that models run with."""

import contextlib
import functools
import json
import platform
import time
from collections.abc import Iterator
from typing import Literal

import torch
from platformdirs import user_cache_path
from torch import nn

from clipgen_core import filesystem, logs
from clipgen_core.errors import ClipgenError, first_line
from clipgen_core.settings.training import Precision

WORTHWHILE = 1.2  # times as fast as fp32, from which on bf16 is used
ROWS, WIDTH, HIDDEN = 512, 512, 1536  # of the product that is timed: a small transformer's
ROUNDS = 4


def default_device() -> str:
    """The device of this thread: its current GPU by number, such as `cuda:1`, else `cpu`.

    Every thread has a current GPU of its own, which is 0 until the thread chooses another. So a thread that
    gives work to others tells them the device, and `cuda` alone would mean another GPU there.
    """
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


def fast_dtype(device: str | torch.device) -> torch.dtype:
    """The type of matrix products: bf16 where this machine is faster in it, else fp32.

    On CPUs a training product is timed in both types, once per machine. No property of the CPU tells: bf16
    was measured at 4.2 times the speed of fp32 with AVX512-BF16 and at half of it on a Xeon without.
    GPUs support bf16 from Ampere on.
    """
    if torch.device(device).type == "cpu":
        fast = bf16_speedup() >= WORTHWHILE
    else:
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def usable(device: str | torch.device | None) -> str:
    """A device that a user names; the default one if None.

    Raises:
        ClipgenError: There is no such device here.
    """
    try:
        place = torch.device(default_device() if device is None else device)
        if place.type not in ("cpu", "cuda"):
            raise ValueError("models run on cpu and cuda")
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise ClipgenError(
            f"the device {device!r} cannot be used ({first_line(error)}): choose 'cpu', or 'cuda' where "
            "there is a GPU"
        ) from error
    return default_device() if str(place) == "cuda" else str(place)


def usable_dtype(dtype: torch.dtype | None, device: str | torch.device) -> torch.dtype:
    """A type of weights that a user names; the fast one of the device if None.

    Args:
        dtype: The type.
        device: Where the model runs.

    Returns:
        The type to use.

    Raises:
        ClipgenError: It is neither torch.bfloat16 nor torch.float32.
    """
    if dtype not in (None, torch.bfloat16, torch.float32):
        raise ClipgenError(f"the dtype is {dtype!r}: choose torch.bfloat16 or torch.float32")
    return dtype or fast_dtype(device)


def resolved(precision: Precision, device: str | torch.device) -> Precision:
    """Replace `auto` by what it means on a device.

    Args:
        precision: "bf16", "fp32" or "auto".
        device: The device.

    Returns:
        "bf16" or "fp32".
    """
    if precision != "auto":
        return precision
    return "bf16" if fast_dtype(device) is torch.bfloat16 else "fp32"


def autocast(device: str | torch.device, precision: Precision = "auto") -> torch.autocast:
    """The autocast context for a precision.

    Args:
        device: The device.
        precision: "bf16", "fp32", or "auto", which is bf16 where `fast_dtype` is.

    Returns:
        A context manager, to enter once.
    """
    return torch.autocast(torch.device(device).type, torch.bfloat16, resolved(precision, device) == "bf16")


@contextlib.contextmanager
def fp32_products(device: str | torch.device, precision: Literal["highest", "high"]) -> Iterator[None]:
    """How exact fp32 matrix products are on a GPU for the length of a `with`. CPUs compute as before.

    Args:
        device: The device.
        precision: "highest" is fp32. "high" allows the tensor cores, which compute in TF32: it has the range
            of fp32 and 10 bits of mantissa, and is several times as fast.

    Yields:
        Nothing.
    """
    if torch.device(device).type == "cpu":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@functools.cache
def bf16_speedup() -> float:
    """How many times as fast as in fp32 a training product is in bf16 on this CPU.

    The measurement takes less than a second. It is kept in the user's cache for the other processes of the
    machine, so that all of them compute alike.
    """
    file = str(user_cache_path("clipgen") / "bf16.json")
    key, known = _machine(), dict[str, float]()
    with contextlib.suppress(OSError, ValueError):
        known = dict(json.loads(filesystem.read_bytes(file)))
    if key not in known:
        known[key] = _measure_bf16_speedup()
        chosen = "bf16" if known[key] >= WORTHWHILE else "fp32"
        logs.line(f"models run in {chosen}: bf16 is {known[key]:.2f} times as fast as fp32 on this CPU")
        with contextlib.suppress(OSError):  # without a cache, every process measures
            filesystem.write_bytes(file, json.dumps(known, indent=2).encode())
    return known[key]


@torch.random.fork_rng(devices=())  # a training that has set its seed may be the first to ask
def _measure_bf16_speedup() -> float:
    layer, rows = nn.Linear(WIDTH, HIDDEN), torch.randn(ROWS, WIDTH, requires_grad=True)

    def seconds(bf16: bool) -> float:
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, bf16):
            product = layer(rows)
        product.sum().backward()
        return time.perf_counter() - began

    with torch.enable_grad():
        times = [(seconds(False), seconds(True)) for _ in range(ROUNDS + 1)][1:]
    fp32, bf16 = (min(of_type) for of_type in zip(*times, strict=True))
    return round(fp32 / bf16, 3)


def _machine() -> str:
    """What the speed depends on: CPU, the instructions that a virtual machine may hide, threads, PyTorch."""
    capabilities = torch.cpu.get_capabilities()
    name = capabilities.get("cpu_name") or platform.processor() or platform.machine()
    instructions = sorted(key for key, there in capabilities.items() if there is True)
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {' '.join(instructions)}"
