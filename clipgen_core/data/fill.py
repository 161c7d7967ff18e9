"""Bring a table up to date with another: add a row for each image that it lacks.

A Worker computes the rows for a batch of images. ComputeConfig says where workers run: in this process, or on
Ray with one worker an actor. Both run the same code for a block of rows, and each block is committed by
itself: a run that was killed continues with the blocks that are missing.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipgen_core import ray_address
from clipgen_core.data.forget import forget_ids, forget_places
from clipgen_core.data.keys import Lookup, joined, keys_of_ids
from clipgen_core.data.listing import UNREADABLE
from clipgen_core.data.prefetch import prefetch
from clipgen_core.data.referenced import Images, find_images, reference_of, take_images
from clipgen_core.data.tables import (
    create_table,
    find_table,
    one_of,
    open_table,
    scan,
    scan_keys,
    upsert,
)
from clipgen_core.errors import ClipgenError
from clipgen_core.extras import needed_for
from clipgen_core.progress import track
from clipgen_core.schema import REFERENCE, REJECTS
from clipgen_core.settings.compute import ComputeConfig
from clipgen_core.storage import Storage


class Unusable(Exception):
    """Images that a worker cannot use although they were accepted.

    Args:
        reasons: Why, by their ids.
    """

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__(", ".join(f"{image_id}: {reason}" for image_id, reason in reasons.items()))
        self.reasons = reasons


class Worker(Protocol):
    """Computes rows in one process; as a rule it holds a model.

    Attributes:
        schema: Schema of the rows that it returns.
    """

    schema: pa.Schema

    def prepare(self, batch: pa.Table) -> Any:
        """Prepare a batch for the model, for example decode its images; called in another thread.

        Raises:
            Unusable: Some of the images cannot be used.
        """

    def rows(self, prepared: Any) -> pa.Table:
        """Compute one row for each image of a prepared batch."""


@dataclass(frozen=True)
class Filling:
    """Which table is brought up to date with which.

    Attributes:
        source: URL of the images table, or of another table with one row an image.
        version: Version of the source.
        target: URL of the table that gets one row for each row of the source.
        batch_size: Rows that a worker computes at once.
        block_size: Rows that are committed at once.
        columns: Columns of the source that the worker needs.
        out: The root to whose rejects images go that a worker cannot use, or that their source no longer
            holds: they are forgotten, and the work goes on. Where it is None, the work stops.
    """

    source: str
    version: int
    target: str
    batch_size: int
    block_size: int
    columns: tuple[str, ...] = ("id", "folder", "image")
    out: Storage | None = None

    def block(self, worker: Worker, rows: np.ndarray) -> int:
        """Compute and commit the target's rows for a block.

        Args:
            worker: Computes the rows.
            rows: Row numbers in the source, int64 [n].

        Returns:
            How many rows the target got: fewer than n where images cannot be used.

        Raises:
            ClipgenError: Images cannot be used, and there is no root for rejects; or their source does not
                answer.
        """
        table = open_table(self.source, self.version)
        batches = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]

        def prepare(number: int) -> Any:
            batch = self._read(take_images(table, batches[number].tolist(), self.columns))
            try:
                return worker.prepare(batch) if batch.num_rows else None
            except Unusable as unusable:
                self._set_aside(unusable.reasons, "damaged")
                kept = batch.filter(pc.invert(pc.is_in(batch["id"], pa.array(list(unusable.reasons)))))
                return worker.prepare(kept) if kept.num_rows else None

        prepared = prefetch(prepare, 0, len(batches), ahead=2)
        computed = [worker.rows(ready) for _, ready in prepared if ready is not None]
        if computed:
            upsert(self.target, pa.concat_tables(computed), "id", overwrite=True)
        return sum(one.num_rows for one in computed)

    def _read(self, images: Images) -> pa.Table:
        """The rows; images that are gone are read where the newest version names them, or at other places."""
        rows, gone = images
        while gone:
            again, gone = find_images(open_table(self.source), one_of("id", sorted(gone)), self.columns)
            rows = pa.concat_tables([rows, again])
            if gone:
                self._set_aside({image_id: one.reason for image_id, one in gone.items()}, UNREADABLE)
        return rows

    def _set_aside(self, why: dict[str, str], reason: str) -> None:
        """Make rejects of images of the source, by id why each of them cannot be used."""
        if self.out is None:
            raise ClipgenError(f"images of {self.source} cannot be used ({Unusable(why)}): remove them")
        table = open_table(self.source)
        columns, where = ["id", "uri", *reference_of(table)], one_of("id", sorted(why))
        rows = [
            {"uri": row["uri"], "file": _file_of(row), "reason": reason}
            | {"detail": f"{why[row['id']]} (image {row['id']}, which was accepted before)"}
            for row in table.to_table(columns=columns, filter=where).to_pylist()
        ]
        upsert(self.out.rejects, pa.Table.from_pylist(rows, schema=REJECTS), "uri", overwrite=True)
        if reason == UNREADABLE:
            forget_places(self.out, [row["uri"] for row in rows])
        else:
            forget_ids(self.out, sorted(why))

    def missing(self, folder: str | None, only: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """The rows of the source whose ids the target lacks.

        Args:
            folder: One top-level folder; all if None.
            only: Keys of the images that are needed, S16 [m]; all if None.

        Yields:
            Row numbers in the source, int64 [n], n at most `block_size`.
        """
        target = find_table(self.target)
        existing = Lookup(joined(scan_keys(target) if target else iter(())))
        needed = None if only is None else Lookup(only)
        first, waiting = 0, np.zeros(0, np.int64)
        for batch in scan(open_table(self.source, self.version), ["id", "folder"]):
            keys = keys_of_ids(batch["id"])
            selected = existing.find(keys) < 0
            if needed is not None:
                selected &= needed.find(keys) >= 0
            if folder is not None:
                selected &= np.array(batch["folder"].to_pylist()) == folder
            waiting = np.concatenate([waiting, first + np.flatnonzero(selected)])
            first += batch.num_rows
            while len(waiting) >= self.block_size:
                yield waiting[: self.block_size]
                waiting = waiting[self.block_size :]
        if len(waiting):
            yield waiting


def _file_of(row: dict[str, Any]) -> str:
    """The file that an image of the images table came from."""
    reference = row.get(REFERENCE.name)
    return str(reference["file"] if reference else row["uri"].partition("#")[0])


def fill(
    filling: Filling,
    make_worker: Callable[[], Worker],
    compute: ComputeConfig,
    label: str,
    folder: str | None = None,
    only: np.ndarray | None = None,
) -> tuple[int, float]:
    """Compute and commit all missing rows.

    Args:
        filling: The tables.
        make_worker: Creates a worker; called once in each process.
        compute: Where the workers run.
        label: Name of the work in progress bars and logs.
        folder: The top-level folder whose images are done; all by default.
        only: Keys of the images that are done, S16 [m]; all by default.

    Returns:
        The number of images done, and images per second.

    Raises:
        ClipgenError: Ray is configured but not installed.
    """
    total = sum(len(rows) for rows in filling.missing(folder, only))
    if not total:
        create_table(filling.target, make_worker().schema)
        return 0, 0.0
    blocks = filling.missing(folder, only)
    done = _on_ray(filling, make_worker, blocks, compute) if compute.where == "ray" else None
    with track(label, total, "images") as meter:
        made = 0
        for count, looked_at in done or _in_process(filling, make_worker, blocks):
            made += count
            meter.advance(looked_at)
        return made, meter.rate


def _in_process(
    filling: Filling, make_worker: Callable[[], Worker], blocks: Iterable[np.ndarray]
) -> Iterator[tuple[int, int]]:
    """Of each block, the rows that were made, and those that it had."""
    worker = make_worker()
    create_table(filling.target, worker.schema)
    return ((filling.block(worker, rows), len(rows)) for rows in blocks)


def _on_ray(
    filling: Filling, make_worker: Callable[[], Worker], blocks: Iterable[np.ndarray], compute: ComputeConfig
) -> Iterator[tuple[int, int]]:
    """As `_in_process`. The blocks are rows of a Ray data set; that of an actor that dies is done again."""
    with needed_for("compute.where: ray"):
        import ray

    class Actor:  # pickled to the Ray workers
        def __init__(self) -> None:
            self.worker = make_worker()
            create_table(filling.target, self.worker.schema)

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            return {"made": filling.block(self.worker, np.asarray(row["rows"])), "of": len(row["rows"])}

    ray_address.join(log_to_driver=False)
    actor: Any = Actor
    todo = ray.data.from_items([{"rows": rows} for rows in blocks])
    done = todo.map(
        actor,
        num_cpus=compute.cpus,
        num_gpus=compute.gpus,
        compute=ray.data.ActorPoolStrategy(size=compute.workers),
    )
    return ((int(row["made"]), int(row["of"])) for row in done.iter_rows())
