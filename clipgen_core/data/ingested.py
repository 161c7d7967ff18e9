"""Write the images that were read: rows of the images table, their metadata, and further places of them.

Knows the columns of the tables; knows nothing of sources.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from clipgen_core import logs
from clipgen_core.data.columns import Columns
from clipgen_core.data.move import move
from clipgen_core.data.referenced import are_there, reference_of
from clipgen_core.data.tables import CONFLICT_RETRIES, create_table, one_of, open_table, persistently, upsert
from clipgen_core.schema import COPIES, REFERENCE
from clipgen_core.storage import Storage

ADD_RETRIES = 20
Row = dict[str, Any]


def begin_columns(out: Storage, columns: Columns) -> None:
    """Add the columns that the tables of images and of their copies lack; their rows have no values in them,
    which a line says.

    Args:
        out: The root, which has an images table.
        columns: The metadata to keep.
    """
    create_table(out.copies, COPIES)
    names = ", ".join(_add(out.images, columns.fields))
    _add(out.copies, columns.fields)
    images = open_table(out.images).count_rows()
    if names and images:
        logs.line(
            f"the columns {names} are new: {images} images that were "
            "read before have no values in them; to read their files again, set images.read_again"
        )


def begin_references(out: Storage) -> None:
    """Add the column of references to the tables of images and of their copies, if they lack it."""
    create_table(out.copies, COPIES)
    for url in (out.images, out.copies):
        _add(url, [REFERENCE])


def _add(url: str, fields: Sequence[pa.Field]) -> list[str]:
    """Add the columns that a table lacks; returns their names."""
    lacking, left = _lacking(url, fields), ADD_RETRIES
    names = [field.name for field in lacking]
    while lacking:
        try:
            open_table(url).add_columns(pa.schema(lacking))
        except (OSError, ValueError):  # another process has written meanwhile
            if not left:
                raise
        lacking, left = _lacking(url, fields), left - 1
    return names


def _lacking(url: str, fields: Sequence[pa.Field]) -> list[pa.Field]:
    names = open_table(url).schema.names
    return [field for field in fields if field.name not in names]


def store(out: Storage, rows: Sequence[Row], columns: Columns) -> int:
    """Insert images that are new; note further places of the others, and what has changed of them.

    An image that comes with its bytes is stored in the place of a reference; never the other way round, since
    its copies may lie where nothing can refer to them.

    Args:
        out: The root, which has an images table.
        rows: Rows of the images table, which may lack metadata; of an image that occurs twice the first
            counts.
        columns: The metadata that was read.

    Returns:
        How many images are new.
    """
    first = {row["id"]: row for row in reversed(rows)}
    new = pa.Table.from_pylist(list(first.values()), schema=open_table(out.images).schema)
    added = upsert(out.images, new, "id", overwrite=False)
    if added < len(rows):
        kept = [*columns.kinds]
        stored = _stored(out, sorted(first), kept)
        _note_copies(out, [row for row in rows if stored[row["id"]]["uri"] != row["uri"]])
        _update(out, [row for row in rows if _differs(row, stored[row["id"]], kept)], kept)
        if reference_of(open_table(out.images)):
            with_bytes_last = sorted(rows, key=lambda row: row[REFERENCE.name] is None)
            moved = {row["id"]: row for row in with_bytes_last if _moved(row, stored[row["id"]])}
            _update(out, [*moved.values()], ["image", REFERENCE.name])
            _follow(out, [row for row in rows if _elsewhere(row, stored[row["id"]])], stored)
    return added


def _elsewhere(row: Row, stored: Mapping[str, Any]) -> bool:
    """Whether an image that the table refers to was found at another place."""
    return bool(row["uri"] != stored["uri"] and row[REFERENCE.name] and stored[REFERENCE.name])


def _follow(out: Storage, rows: list[Row], stored: Mapping[str, Row]) -> None:
    """Let rows name the places of their images now if the files that they refer to are gone."""
    there = are_there([stored[row["id"]][REFERENCE.name]["file"] for row in rows])
    gone = [row for row, still in zip(rows, there, strict=True) if not still]
    move(out, {row["id"]: (row["uri"], row["folder"]) for row in gone})


def _moved(row: Row, stored: Mapping[str, Any]) -> bool:
    """Whether the bytes of an image that the table refers to came now, or lie elsewhere in the same file."""
    old, new = stored[REFERENCE.name], row[REFERENCE.name]
    return old is not None and (new is None or (row["uri"] == stored["uri"] and new != old))


def _stored(out: Storage, ids: list[str], kept: list[str]) -> dict[str, Row]:
    table = open_table(out.images)
    rows = table.to_table(columns=["id", "uri", *kept, *reference_of(table)], filter=one_of("id", ids))
    return {row["id"]: row for row in rows.to_pylist()}


def _note_copies(out: Storage, rows: list[Row]) -> None:
    schema = create_table(out.copies, COPIES).schema
    upsert(out.copies, pa.Table.from_pylist(rows, schema=schema), "uri", overwrite=True)


def _differs(row: Row, stored: Mapping[str, Any], kept: list[str]) -> bool:
    """Whether the place that the table names has other metadata of its image now."""
    return bool(row["uri"] == stored["uri"] and any(row.get(name) != stored[name] for name in kept))


def _update(out: Storage, rows: Sequence[Row], kept: list[str]) -> None:
    if not rows:
        return
    table = open_table(out.images)
    schema = pa.schema([table.schema.field(name) for name in ("id", *kept)])
    values = pa.Table.from_pylist(rows, schema=schema)

    def merge() -> None:
        builder = open_table(out.images).merge_insert("id").when_matched_update_all()
        builder.conflict_retries(CONFLICT_RETRIES).execute(values)

    persistently(out.images, merge)
