"""Let images name another of their places (see copies.lance), when theirs is gone."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from clipgen_core.data.tables import delete, find_table, one_of, open_table, quoted, update, upsert
from clipgen_core.data.upkeep import tables
from clipgen_core.schema import COPIES, REFERENCE
from clipgen_core.storage import Storage


def move(out: Storage, places: Mapping[str, tuple[str, str]]) -> None:
    """Let rows name another place of their image, and have the metadata that it has there.

    Args:
        out: The root.
        places: The (uri, folder) of a copy, by id. Nothing is done if there are none.
    """
    if not places:
        return
    where = one_of("id", list(places))
    rows = open_table(out.images).to_table(filter=where)
    ids = rows["id"].to_pylist()
    moved = {name: [places[one][at] for one in ids] for at, name in enumerate(("uri", "folder"))}
    moved |= _further(out, moved["uri"], rows)
    for name, values in moved.items():
        field = rows.schema.field(name)
        rows = rows.set_column(rows.schema.get_field_index(name), field, pa.array(values, field.type))
    upsert(out.images, rows, "id", overwrite=True)
    for url in tables(out):
        table = find_table(url)
        if table is not None and url not in (out.images, out.copies) and "id" in table.schema.names:
            for folder in {folder for _, folder in places.values()}:
                here = [one for one, (_, place) in places.items() if place == folder]
                update(url, {"folder": quoted(folder)}, one_of("id", here))
    delete(out.copies, one_of("uri", [uri for uri, _ in places.values()]))


def _further(out: Storage, uris: list[str], rows: pa.Table) -> dict[str, list[Any]]:
    """What the table of copies says of other places of images, by column: their metadata, and their
    references, which images that the table stores lack."""
    table = open_table(out.copies)
    names = [name for name in rows.schema.names if name in table.schema.names and name not in COPIES.names]
    found = table.to_table(columns=["uri", *names], filter=one_of("uri", uris)).to_pylist()
    copies = {row["uri"]: row for row in found}
    further = {name: [copies[uri][name] for uri in uris] for name in names}
    if REFERENCE.name in further:
        old = zip(rows[REFERENCE.name].to_pylist(), further[REFERENCE.name], strict=True)
        further[REFERENCE.name] = [before and (now or before) for before, now in old]
    return further
