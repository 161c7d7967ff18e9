"""Write the images that were read: rows of the images table, their metadata, and further places of them.

Knows the columns of the tables; knows nothing of sources.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from clipgen_core import logs
from clipgen_core.data.columns import Columns
from clipgen_core.data.tables import CONFLICT_RETRIES, one_of, open_table, persistently, upsert
from clipgen_core.schema import COPIES
from clipgen_core.storage import Storage

ADD_RETRIES = 20
Row = dict[str, Any]


def begin_columns(out: Storage, columns: Columns) -> None:
    """Add the columns that the images table lacks; its rows have no values in them, which a line says.

    Args:
        out: The root, which has an images table.
        columns: The metadata to keep.
    """
    lacking, left = _lacking(out, columns), ADD_RETRIES
    names = ", ".join(field.name for field in lacking)
    while lacking:
        try:
            open_table(out.images).add_columns(pa.schema(lacking))
        except (OSError, ValueError):  # another process has written meanwhile
            if not left:
                raise
        lacking, left = _lacking(out, columns), left - 1
    images = open_table(out.images).count_rows()
    if names and images:
        logs.line(
            f"the columns {names} are new: {images} images that were "
            "read before have no values in them; to read their files again, set images.read_again"
        )


def _lacking(out: Storage, columns: Columns) -> list[pa.Field]:
    names = open_table(out.images).schema.names
    return [field for field in columns.fields if field.name not in names]


def store(out: Storage, rows: Sequence[Row], columns: Columns) -> int:
    """Insert images that are new; note further places of the others, and metadata that has changed.

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
    return added


def _stored(out: Storage, ids: list[str], kept: list[str]) -> dict[str, Row]:
    rows = open_table(out.images).to_table(columns=["id", "uri", *kept], filter=one_of("id", ids))
    return {row["id"]: row for row in rows.to_pylist()}


def _note_copies(out: Storage, rows: list[Row]) -> None:
    copies = [{name: row[name] for name in COPIES.names} for row in rows]
    upsert(out.copies, pa.Table.from_pylist(copies, schema=COPIES), "uri", overwrite=True)


def _differs(row: Row, stored: Mapping[str, Any], kept: list[str]) -> bool:
    """Whether the place that the table names has other metadata of its image now."""
    return bool(row["uri"] == stored["uri"] and any(row.get(name) != stored[name] for name in kept))


def _update(out: Storage, rows: list[Row], kept: list[str]) -> None:
    if not rows:
        return
    table = open_table(out.images)
    schema = pa.schema([table.schema.field(name) for name in ("id", *kept)])
    values = pa.Table.from_pylist(rows, schema=schema)

    def merge() -> None:
        builder = open_table(out.images).merge_insert("id").when_matched_update_all()
        builder.conflict_retries(CONFLICT_RETRIES).execute(values)

    persistently(out.images, merge)
