"""Remove the images of a top-level folder from all tables, as a rule one that was deleted from the source.

An image that also exists in another folder (see copies.lance) is kept and moved to that folder. Versions of
tables that a model was trained on are tagged and can still be read.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

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
from clipgen_core.schema import REFERENCE
from clipgen_core.storage import Storage

AT_ONCE = 1000


@dataclass(frozen=True)
class Pruned:
    """The result of a prune.

    Attributes:
        images: Rows removed from the images table.
        moved: Images that were kept because another folder holds a copy.
    """

    images: int
    moved: int


def prune(out: Storage, folder: str, *, dry_run: bool) -> Pruned:
    """Remove a folder's rows from every table.

    The rows of files.lance are removed last, so that a prune that was killed can be run again.

    Args:
        out: The root.
        folder: Name of the top-level folder.
        dry_run: Whether to count only.

    Returns:
        What was removed, or would be.

    Raises:
        ClipgenError: No table has a row of the folder.
    """
    images = open_table(out.images)
    total, files = count(images, folder), find_table(out.files)
    if not total and not (files and count(files, folder)):
        raise ClipgenError(f"no image under {out.root} is in a folder {folder!r}: see `clipgen folders`")
    elsewhere = list(_copies_elsewhere(out, folder))
    moved = sum(len(copies) for copies in elsewhere)
    if dry_run:
        return Pruned(total - moved, moved)
    for copies in elsewhere:
        move(out, copies)
    _forget_pairs(out, folder)
    for url in tables(out):
        table = find_table(url)
        if table is not None and url != out.files and "folder" in table.schema.names:
            delete(url, f"folder = {quoted(folder)}")
    if files:
        _remove_files(out, folder)
    return Pruned(total - moved, moved)


def _forget_pairs(out: Storage, folder: str) -> None:
    """Let near-duplicates be looked up again whose nearest image is in the folder."""
    every = {url: table for url in tables(out) if (table := find_table(url)) is not None}
    pairs = [url for url, table in every.items() if "nearest" in table.schema.names]
    where = f"folder = {quoted(folder)}"
    for batch in scan(open_table(out.images), ["id"], where, AT_ONCE) if pairs else ():
        for url in pairs:
            delete(url, one_of("nearest", batch["id"].to_pylist()))


def _copies_elsewhere(out: Storage, folder: str) -> Iterator[dict[str, tuple[str, str]]]:
    """The (uri, folder) of a copy outside the folder, by id, for images whose row names the folder."""
    copies = find_table(out.copies)
    where = f"folder != {quoted(folder)}"
    for batch in scan(copies, ["id", "uri", "folder"], where, AT_ONCE) if copies else ():
        places = {row["id"]: (row["uri"], row["folder"]) for row in batch.to_pylist()}
        rows = open_table(out.images).to_table(
            columns=["id"], filter=f"folder = {quoted(folder)} AND {one_of('id', list(places))}"
        )
        if rows.num_rows:
            yield {one: places[one] for one in rows["id"].to_pylist()}


def move(out: Storage, places: Mapping[str, tuple[str, str]]) -> None:
    """Let rows name another place of their image.

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
    if REFERENCE.name in rows.schema.names:
        moved[REFERENCE.name] = _references(out, moved["uri"], rows[REFERENCE.name].to_pylist())
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


def _references(out: Storage, uris: list[str], old: list[Any]) -> list[Any]:
    """The references of other places of images; None for images that the table stores."""
    copies = open_table(out.copies).to_table(columns=["uri", REFERENCE.name], filter=one_of("uri", uris))
    references = {row["uri"]: row[REFERENCE.name] for row in copies.to_pylist()}
    return [one and (references[uri] or one) for uri, one in zip(uris, old, strict=True)]


def _remove_files(out: Storage, folder: str) -> None:
    """Remove the rejects of the folder's files, then the rows of the files."""
    where = f"folder = {quoted(folder)}"
    for batch in scan(open_table(out.files), ["uri"], f"{where} AND rejected > 0", AT_ONCE):
        delete(out.rejects, one_of("file", batch["uri"].to_pylist()))
    delete(out.files, where)
