"""Move batches to the device while it computes. Knows nested tensors; knows nothing of what they mean.

A copy to a GPU takes no time of the computation if it comes from pinned memory and runs on a stream of its
own. So one thread loads a batch, pins it and starts its copy, and the thread that computes waits for the copy
on the GPU, not on the CPU.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def map_tensors(call: Callable[[Tensor], Any], value: Any) -> Any:
    """Apply a function to every tensor of a batch.

    Args:
        call: The function.
        value: A tensor, or tensors in tuples, lists and dataclasses at any depth; other values stay.

    Returns:
        The same structure.
    """
    if isinstance(value, Tensor):
        return call(value)
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(call, one) for one in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
        return dataclasses.replace(value, **{name: map_tensors(call, one) for name, one in fields.items()})
    return value


def moved(batch: Any, device: str | torch.device) -> Any:
    """A batch on a device.

    Args:
        batch: Nested tensors.
        device: The device; tensors that are there already stay.

    Returns:
        The same structure.
    """
    return map_tensors(lambda tensor: tensor.to(device), batch)


@dataclass(frozen=True)
class Moving:
    """A batch on its way: its tensors on the device, and the event after which they are complete."""

    batch: Any
    copied: Any = None


class Transfer:
    """Moves batches to one device.

    Args:
        device: The device, with its number if it is a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin(self, batch: Any) -> Moving:
        """Start to copy a batch, in any thread."""
        if self.stream is None:
            return Moving(moved(batch, self.device))
        with torch.cuda.stream(self.stream):  # makes its GPU the current one, whose context pins memory
            copies = map_tensors(lambda one: one.pin_memory().to(self.device, non_blocking=True), batch)
            return Moving(copies, self.stream.record_event())

    def end(self, moving: Moving) -> Any:
        """The batch, for the current stream of this thread, which waits until it is complete."""
        if moving.copied is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_event(moving.copied)
            # or the allocator would give its memory to the next copy when Python, ahead of the GPU, drops it
            map_tensors(lambda tensor: tensor.record_stream(computing), moving.batch)
        return moving.batch
