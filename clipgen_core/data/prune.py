"""Remove the images of a top-level folder from all tables, as a rule one that was deleted from the source.

An image that also exists in another folder (see copies.lance) is kept and moved to that folder. Versions of
tables that a model was trained on are tagged and can still be read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clipgen_core.data.files import AT_ONCE, remove_record
from clipgen_core.data.folders import is_of, source_of, sources
from clipgen_core.data.forget import forget_places, places
from clipgen_core.data.move import move
from clipgen_core.data.names import text_of, uri_of
from clipgen_core.data.sources import in_lists
from clipgen_core.data.tables import count, delete, find_table, one_of, open_table, quoted, scan
from clipgen_core.data.upkeep import tables
from clipgen_core.errors import ClipgenError
from clipgen_core.storage import Storage

if TYPE_CHECKING:
    import lance


@dataclass(frozen=True)
class Pruned:
    """The result of a prune.

    Attributes:
        images: Rows removed from the images table.
        moved: Images that were kept because another folder holds a copy.
    """

    images: int
    moved: int


def prune(out: Storage, folder: str, source: str | None = None, *, dry_run: bool) -> Pruned:
    """Remove a folder's rows from every table.

    The rows of files.lance are removed first, and those of images.lance last. So a prune that was killed can
    be run again, and a run that reads the source instead takes in again what had been removed.

    Args:
        out: The root.
        folder: Name of the top-level folder.
        source: The source that had it, which need not be there any more; needed if several had one.
        dry_run: Whether to count only.

    Returns:
        What was removed, or would be.

    Raises:
        ClipgenError: No table has a row of the folder, or several sources had one.
    """
    folder = text_of(folder)
    images, files = open_table(out.images), find_table(out.files)
    had = {source for table in (images, files) if table for source in sources(table, folder)}
    if not had:
        raise ClipgenError(f"no image under {out.root} is in a folder {folder!r}: see `clipgen folders`")
    if source is None:
        _require_one(folder, sorted(had))
    else:
        base = uri_of(source).rstrip("/")
        if not any(_had(table, folder, base) for table in (images, files) if table):
            raise ClipgenError(
                f"no folder {folder!r} was read from {source}, but from {', '.join(sorted(had))}"
            )
        if len(had) > 1:
            return _prune_one(out, folder, base, dry_run)
    total, elsewhere = count(images, folder), list(_copies_elsewhere(out, folder))
    pruned = Pruned(total - sum(map(len, elsewhere)), sum(map(len, elsewhere)))
    if not dry_run:
        _prune_all(out, folder, had, elsewhere)
    return pruned


def _require_one(folder: str, had: list[str]) -> None:
    """Refuse a folder that several sources had."""
    if len(had) > 1:
        raise ClipgenError(
            f"{len(had)} sources have a folder {folder!r}, {', '.join(had)}: name one of them by --source"
        )


def _had(table: "lance.LanceDataset", folder: str, source: str) -> bool:
    """Whether a table has a row of the folder of a source."""
    where = f"folder = {quoted(folder)} AND starts_with(uri, {quoted(source + '/')})"
    return any(
        is_of(uri, folder, source)
        for batch in scan(table, ["uri"], where)
        for uri in batch["uri"].to_pylist()
    )


def _prune_all(out: Storage, folder: str, had: set[str], elsewhere: list[dict[str, tuple[str, str]]]) -> None:
    """Remove all rows of a folder, except of the images that lie elsewhere."""
    if find_table(out.files):
        delete(out.files, f"folder = {quoted(folder)}")
    _remove_rejects(out, folder, had)
    for copies in elsewhere:
        move(out, copies)
    _forget_pairs(out, folder)
    for url in (*(url for url in tables(out) if url not in (out.files, out.images)), out.images):
        table = find_table(url)
        if table is not None and "folder" in table.schema.names:
            delete(url, f"folder = {quoted(folder)}")


def _prune_one(out: Storage, folder: str, source: str, dry_run: bool) -> Pruned:
    """Remove the rows of the folder of one source, where another has a folder of that name."""
    where = f"folder = {quoted(folder)} AND starts_with(uri, {quoted(source + '/')})"
    uris = [uri for uri in places(out, where) if is_of(uri, folder, source)]
    images = open_table(out.images)
    named = sum(images.count_rows(one_of("uri", some)) for some in in_lists(uris, AT_ONCE))
    for batch in scan(open_table(out.files), ["uri"], where) if not dry_run else ():
        remove_record(out, [uri for uri in batch["uri"].to_pylist() if is_of(uri, folder, source)])
    gone = forget_places(out, uris, dry_run=dry_run)
    return Pruned(gone, named - gone)


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


def _remove_rejects(out: Storage, folder: str, had: set[str]) -> None:
    """Remove the rejects of the folder of each source."""
    table = find_table(out.rejects)
    for batch in scan(table, ["file"], None, AT_ONCE) if table else ():
        files = [file for file in batch["file"].to_pylist() if source_of(file, folder) in had]
        if files:
            delete(out.rejects, one_of("file", files))
