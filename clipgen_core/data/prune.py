"""Forget the pictures of a top-level folder, as a rule one that is gone from the source.

A picture that also lies elsewhere (copies.lance) is kept and filed there. Versions of tables that models
were trained on are tagged and stay readable.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from clipgen_core.data.tables import (
    count,
    delete,
    find_table,
    one_of,
    open_table,
    quoted,
    scan,
    update,
    upsert,
)
from clipgen_core.data.upkeep import tables
from clipgen_core.errors import ClipgenError
from clipgen_core.storage import Storage

AT_ONCE = 1000


@dataclass(frozen=True)
class Pruned:
    """pictures: rows taken out of the images table; filed_elsewhere: kept because of a copy."""

    pictures: int
    filed_elsewhere: int


def prune(out: Storage, folder: str, *, dry_run: bool) -> Pruned:
    """Take a folder's rows out of every table; the record of its files goes last, so a killed prune can be
    run again.

    Raises:
        ClipgenError: no row is of that folder.
    """
    images = open_table(out.images)
    held, known = count(images, folder), find_table(out.files)
    if not held and not (known and count(known, folder)):
        raise ClipgenError(f"no picture under {out.root} is of a folder {folder!r}: see `clipgen folders`")
    elsewhere = list(_copies_elsewhere(out, folder))
    moved = sum(len(some) for some in elsewhere)
    if dry_run:
        return Pruned(held - moved, moved)
    for copies in elsewhere:
        _file_elsewhere(out, copies)
    for url in tables(out):
        table = find_table(url)
        if table is not None and url != out.files and "folder" in table.schema.names:
            delete(url, f"folder = {quoted(folder)}")
    if known:
        _forget_files(out, folder)
    return Pruned(held - moved, moved)


def _copies_elsewhere(out: Storage, folder: str) -> Iterator[dict[str, tuple[str, str]]]:
    """id -> (uri, folder) of a copy outside the folder, for pictures that are filed in it."""
    copies = find_table(out.copies)
    where = f"folder != {quoted(folder)}"
    for batch in scan(copies, ["id", "uri", "folder"], where, AT_ONCE) if copies else ():
        places = {row["id"]: (row["uri"], row["folder"]) for row in batch.to_pylist()}
        filed = open_table(out.images).to_table(
            columns=["id"], filter=f"folder = {quoted(folder)} AND {one_of('id', list(places))}"
        )
        if filed.num_rows:
            yield {one: places[one] for one in filed["id"].to_pylist()}


def _file_elsewhere(out: Storage, places: dict[str, tuple[str, str]]) -> None:
    where = one_of("id", list(places))
    rows = open_table(out.images).to_table(filter=where)
    ids = rows["id"].to_pylist()
    for at, name in enumerate(("uri", "folder")):
        values = pa.array([places[one][at] for one in ids], pa.string())
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), values)
    upsert(out.images, rows, "id", overwrite=True)
    for url in tables(out):
        table = find_table(url)
        if table is not None and url not in (out.images, out.copies) and "id" in table.schema.names:
            for folder in {folder for _, folder in places.values()}:
                here = [one for one, (_, place) in places.items() if place == folder]
                update(url, {"folder": quoted(folder)}, one_of("id", here))
    delete(out.copies, one_of("uri", [uri for uri, _ in places.values()]))


def _forget_files(out: Storage, folder: str) -> None:
    """Rejects of the folder's files, then the record of the files."""
    where = f"folder = {quoted(folder)}"
    for batch in scan(open_table(out.files), ["uri"], f"{where} AND rejected > 0", AT_ONCE):
        delete(out.rejects, one_of("file", batch["uri"].to_pylist()))
    delete(out.files, where)
