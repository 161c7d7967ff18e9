"""Maintenance of growing tables: indexes, compaction, removal of old versions, tags.

An index helps from some thousand rows on; below that, Lance's exact search is as fast.
"""

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from clipgen_core.data.tables import find_table, open_table, partitions, persistently
from clipgen_core.errors import ClipgenError
from clipgen_core.filesystem import list_folder
from clipgen_core.settings.embeddings import INDEX_FROM
from clipgen_core.storage import Storage

if TYPE_CHECKING:
    import lance

os.environ.setdefault("LANCE_INCLUDE_VECTOR_CENTROIDS", "false")  # statistics in a few bytes

UNINDEXED_SHARE = 0.05  # more rows than this outside the index are put into it
RETRAINED_AT = 2  # times the rows that the vector index was trained at
TRAINED_AT = "vector_index_rows"  # in the table's metadata: how many rows these were
DIMENSIONS_A_CODE = 8  # of a product quantizer's code of one byte
VECTOR, FOLDER = "vector_idx", "folder_idx"
FILE_BYTES = 2**28  # of a data file that compaction leaves as it is
BATCH_BYTES = 2**21  # that compaction reads at once
SMALLEST_ROW = 64  # bytes, if a table is empty or says no sizes


def update_indexes(url: str, rows: int = INDEX_FROM, most: int | None = None) -> None:
    """Create or update the indexes of `vector` (IVF_PQ, cosine) and `folder`.

    Rows that came later are put into the vector index by centroids and codes of the rows that it was trained
    at, each time as a further segment, and a search reads all segments. So the index is trained again when
    the table has doubled: all trainings together take at most twice as long as the last one.

    Args:
        url: The table.
        rows: The number of rows from which indexes are created.
        most: How many rows may stay outside the vector index; UNINDEXED_SHARE of them if None.

    Raises:
        ClipgenError: The table does not exist.
    """
    table = open_table(url)
    count = table.count_rows()
    if count < rows:
        return
    names = {index.name for index in table.describe_indices()}
    if FOLDER not in names:
        table.create_scalar_index("folder", "BITMAP", name=FOLDER)
    if VECTOR not in names or count >= RETRAINED_AT * _trained_at(table):
        _train(table)
        table.optimize.optimize_indices(index_names=[FOLDER])
    elif unindexed(table) > (UNINDEXED_SHARE * count if most is None else most):
        table.optimize.optimize_indices()


def _trained_at(table: "lance.LanceDataset") -> int:
    """How many rows the vector index was trained at; 0 if an earlier version did not note it."""
    return int(table.metadata.get(TRAINED_AT, 0))


def _train(table: "lance.LanceDataset") -> None:
    dim = table.schema.field("vector").type.list_size
    table.create_index(
        "vector",
        "IVF_PQ",
        name=VECTOR,
        metric="cosine",
        num_partitions=partitions(table),
        num_sub_vectors=max(dim // DIMENSIONS_A_CODE, 1),
        replace=True,
    )
    table.update_metadata({TRAINED_AT: str(table.count_rows())})


def unindexed(table: "lance.LanceDataset") -> int:
    """Number of rows that are not in the vector index, so that a search compares each of them."""
    return int(table.stats.index_stats(VECTOR)["num_unindexed_rows"])


def tables(out: Storage) -> list[str]:
    """The URLs of all tables under a root, whether or not they exist."""
    urls = [out.images, out.rejects, out.files, out.copies, out.missing]
    for kind in ("embeddings", "codes", "duplicates"):
        urls += [out.path(kind, name) for name in list_folder(out.path(kind)) if name.endswith(".lance")]
    return urls


def compact(url: str, keep: timedelta) -> tuple[int, int]:
    """Merge small files and remove old versions, except tagged ones.

    Files of about FILE_BYTES are left as they are, so that no more than that and what came since is written
    again, except those with rows that were deleted: these leave the disk with the old versions. Memory does
    not grow with the table.

    Args:
        url: The table, which need not exist.
        keep: Age up to which versions are kept.

    Returns:
        The number of files merged and of bytes removed.
    """
    table = find_table(url)
    if table is None:
        return 0, 0
    size = bytes_per_row(table)
    merged = table.optimize.compact_files(
        target_rows_per_fragment=max(int(FILE_BYTES / size), 1),
        batch_size=max(int(BATCH_BYTES / size), 1),
        num_threads=1,
        materialize_deletions_threshold=0.0,  # else a tenth of a file's rows may stay there for good
        compaction_mode="try_binary_copy",  # where no rows were deleted; a third of the time and memory
    )
    _follow_deletion(url)
    removed = open_table(url).cleanup_old_versions(older_than=keep, error_if_tagged_old_versions=False)
    return int(merged.fragments_removed), int(removed.bytes_removed)


def _follow_deletion(url: str) -> None:
    """Commit a version after one that deleted rows, as the newest one is kept, and names them."""
    from lance import LanceOperation

    table = open_table(url)
    newest = table.read_transaction(table.version)
    if newest is not None and isinstance(newest.operation, LanceOperation.Delete):
        table.update_metadata({"compacted": datetime.now(UTC).isoformat()})


def bytes_per_row(table: "lance.LanceDataset") -> float:
    """The mean size of a row on disk, SMALLEST_ROW at least."""
    return max(size_on_disk(table) / max(table.count_rows(), 1), SMALLEST_ROW)


def size_on_disk(table: "lance.LanceDataset") -> int:
    """Bytes of the files of a version."""
    files = [file for fragment in table.get_fragments() for file in fragment.data_files()]
    return sum(file.file_size_bytes or 0 for file in files)


def tag(url: str, version: int, name: str) -> None:
    """Tag a version, which is then never removed; does nothing if the version has the tag already.

    Args:
        url: The table.
        version: The version.
        name: Name of the tag.

    Raises:
        ClipgenError: The tag names another version.
    """
    if name not in tags_of(url):
        try:
            persistently(url, lambda: open_table(url).tags.create(name, version))
        except ValueError:
            if name not in tags_of(url):  # else another process was first
                raise
    named = tags_of(url)[name]
    if named != version:
        raise ClipgenError(f"the tag {name} of {url} names version {named}, not {version}: delete the tag")


def remove_tags(url: str, gone: Callable[[str], bool]) -> None:
    """Remove tags, so that the versions that they name are removed with the other old ones.

    Args:
        url: The table, which need not exist.
        gone: Whether a tag of this name is removed.
    """
    if find_table(url) is None:
        return
    for name in filter(gone, tags_of(url)):
        open_table(url).tags.delete(name)


def tags_of(url: str) -> dict[str, int]:
    """The versions that the tags of a table name, by the tags' names."""
    tags = persistently(url, lambda: open_table(url).tags.list())
    return {name: int(tag["version"]) for name, tag in tags.items()}
