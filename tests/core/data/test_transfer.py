import os
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from clipgen_core.data import prefetch
from clipgen_core.data.transfer import Transfer


@dataclass(frozen=True)
class Part:
    rows: Tensor
    name: str
    more: Tensor | None = None


def test_a_batch_keeps_its_structure_on_the_way() -> None:
    transfer = Transfer(torch.device("meta"))
    batch: Any = (3, [torch.ones(2, 3, dtype=torch.uint8)], Part(torch.zeros(4), "a"))
    step, (images,), part = transfer.end(transfer.begin(batch))
    assert (step, part.name, part.more) == (3, "a", None)
    assert images.device.type == part.rows.device.type == "meta"
    assert images.dtype is torch.uint8 and images.shape == (2, 3)


def test_on_a_cpu_nothing_is_copied() -> None:
    transfer, rows = Transfer(torch.device("cpu")), torch.zeros(4)
    assert transfer.end(transfer.begin(Part(rows, "a"))).rows is rows


@pytest.mark.parametrize(("cores", "processes", "threads"), [(16, 1, 16), (128, 8, 16), (2, 1, 4)])
def test_processes_of_a_training_share_the_cores(
    cores: int, processes: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert prefetch.pool_size() == threads
