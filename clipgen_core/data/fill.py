"""Bring a table up to date with another: one row for each picture it lacks.

The work on a batch of pictures is a Worker's; where it runs is told by ComputeConfig: in this process, or
on Ray, one Worker an actor. The code for a block is the same, and every block is committed by
itself: a run that was killed goes on with the blocks that are not there.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from clipgen_core.data.keys import Lookup, joined, keys_of_ids
from clipgen_core.data.prefetch import prefetch
from clipgen_core.data.tables import create_table, find_table, open_table, scan, scan_keys, upsert
from clipgen_core.extras import needed_for
from clipgen_core.progress import track
from clipgen_core.settings.compute import ComputeConfig


class Worker(Protocol):
    """What one process holds, a model as a rule. schema: of the rows it makes."""

    schema: pa.Schema

    def prepare(self, batch: pa.Table) -> Any:
        """Make a batch ready (decode it), in a thread beside the model."""

    def rows(self, prepared: Any) -> pa.Table:
        """A row for each picture of the batch."""


@dataclass(frozen=True)
class Filling:
    """source at `version`: the pictures, by the images table or another that has one row for each; columns:
    what the work needs of it; target: the table that gets a row for each."""

    source: str
    version: int
    target: str
    batch_size: int
    block_size: int
    columns: tuple[str, ...] = ("id", "folder", "image")

    def block(self, worker: Worker, rows: np.ndarray) -> int:
        """Make the rows for some rows of the source and commit them; how many pictures that were."""
        table = open_table(self.source, self.version)
        batches = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]

        def prepare(number: int) -> Any:
            return worker.prepare(table.take(batches[number].tolist(), columns=list(self.columns)))

        made = [worker.rows(ready) for _, ready in prefetch(prepare, 0, len(batches), ahead=2)]
        upsert(self.target, pa.concat_tables(made), "id", overwrite=True)
        return len(rows)

    def missing(self, folder: str | None) -> Iterator[np.ndarray]:
        """Row numbers of the source, block by block, whose id the target lacks."""
        target = find_table(self.target)
        there = Lookup(joined(scan_keys(target) if target else iter(())))
        first, waiting = 0, np.zeros(0, np.int64)
        for batch in scan(open_table(self.source, self.version), ["id", "folder"]):
            wanted = there.find(keys_of_ids(batch["id"])) < 0
            if folder is not None:
                wanted &= np.array(batch["folder"].to_pylist()) == folder
            waiting = np.concatenate([waiting, first + np.flatnonzero(wanted)])
            first += batch.num_rows
            while len(waiting) >= self.block_size:
                yield waiting[: self.block_size]
                waiting = waiting[self.block_size :]
        if len(waiting):
            yield waiting


def fill(
    filling: Filling,
    make_worker: Callable[[], Worker],
    compute: ComputeConfig,
    label: str,
    folder: str | None = None,
) -> tuple[int, float]:
    """Do all that is missing: (pictures done, pictures a second)."""
    total = sum(len(rows) for rows in filling.missing(folder))
    if not total:
        create_table(filling.target, make_worker().schema)
        return 0, 0.0
    blocks = filling.missing(folder)
    done = _on_ray(filling, make_worker, blocks, compute) if compute.where == "ray" else None
    with track(label, total, "pictures") as meter:
        for count in done or _here(filling, make_worker, blocks):
            meter.advance(count)
        return meter.done, meter.rate


def _here(filling: Filling, make_worker: Callable[[], Worker], blocks: Iterable[np.ndarray]) -> Iterator[int]:
    worker = make_worker()
    create_table(filling.target, worker.schema)
    return (filling.block(worker, rows) for rows in blocks)


def _on_ray(
    filling: Filling, make_worker: Callable[[], Worker], blocks: Iterable[np.ndarray], compute: ComputeConfig
) -> Iterator[int]:
    """Blocks as rows of a Ray data set; an actor that dies is replaced and its block done again."""
    with needed_for("compute.where: ray"):
        import ray

    class Actor:  # made anew on each worker
        def __init__(self) -> None:
            self.worker = make_worker()
            create_table(filling.target, self.worker.schema)

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            return {"done": filling.block(self.worker, np.asarray(row["rows"]))}

    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    actor: Any = Actor
    todo = ray.data.from_items([{"rows": rows} for rows in blocks])
    done = todo.map(
        actor,
        num_cpus=compute.cpus,
        num_gpus=compute.gpus,
        compute=ray.data.ActorPoolStrategy(size=compute.workers),
    )
    return (int(row["done"]) for row in done.iter_rows())
