"""What a GPU does with the models of the recipes: `python -m benchmarks gpu`.

Needs neither Lance nor Dagster nor MLflow, which a machine that only trains may lack.
"""

import gc
import math
import socket
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import typer

from benchmarks.timing import Row

if TYPE_CHECKING:
    from benchmarks.gpu.inputs import Inputs

SPEED = ("peaks", "embedding", "encoding", "vqgan", "transformer", "sampling")
AGREEMENT = ("agreement", "resuming", "processes")
PARTS = (*AGREEMENT, *SPEED)


def gpu(parts: Sequence[str]) -> Iterator[Row]:
    """Measure on the GPU of this machine, in less than ten minutes if it is an H100.

    Args:
        parts: Which of PARTS; all if none.

    Yields:
        The rows of the table.
    """
    from benchmarks.gpu.inputs import Inputs, Sizes

    if unknown := set(parts) - set(PARTS):
        raise typer.BadParameter(f"there is no part {', '.join(unknown)}: choose of {', '.join(PARTS)}")
    if not torch.cuda.is_available():
        raise typer.BadParameter("there is no GPU here, which this benchmark measures")
    print(torch.cuda.get_device_name(), f"torch {torch.__version__}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as scratch:
        inputs = Inputs(Sizes(), torch.device("cuda:0"), Path(scratch), free_port())
        yield from measure(inputs, parts or PARTS)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def measure(inputs: "Inputs", parts: Sequence[str]) -> Iterator[Row]:
    """Measure some parts on a device.

    Args:
        inputs: The device, the sizes and what is measured.
        parts: Which of PARTS.

    Yields:
        The rows of the table; a part that fails has a row that says so, and its traceback is printed.
    """
    from benchmarks.gpu import agreement, speed

    for part in parts:
        work = getattr(speed if part in SPEED else agreement, part)
        try:
            yield from work(inputs)
        except Exception as error:
            traceback.print_exc()
            yield Row(part, "FAILED", math.nan, "", "", f"{type(error).__name__}: {error}"[:200])
        torch._dynamo.reset()
        gc.collect()
        if inputs.device.type == "cuda":
            torch.cuda.empty_cache()
