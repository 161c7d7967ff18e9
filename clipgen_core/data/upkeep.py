"""Keep growing tables fast to search and small on disk: indexes, compaction, old versions, tags.

An index is only of use from some thousand rows on; below that, Lance's exact search is as fast.
"""

import os
from datetime import timedelta

import lance

from clipgen_core.data.tables import find_table, open_table, partitions, persistently
from clipgen_core.errors import ClipgenError
from clipgen_core.settings.embeddings import INDEX_FROM
from clipgen_core.storage import Storage, list_folder

os.environ.setdefault("LANCE_INCLUDE_VECTOR_CENTROIDS", "false")  # statistics in a few bytes

UNINDEXED_SHARE = 0.05  # more rows than this outside the index are put into it
DIMENSIONS_A_CODE = 8  # of a product quantizer's code of one byte
VECTOR, FOLDER = "vector_idx", "folder_idx"


def update_indexes(url: str, rows: int = INDEX_FROM) -> None:
    """Index `vector` (IVF_PQ, cosine) and `folder` from `rows` rows on; later rows are put into the indexes
    that are there, without training them again."""
    table = open_table(url)
    if table.count_rows() < rows:
        return
    names = {index.name for index in table.describe_indices()}
    if VECTOR not in names:
        dim = table.schema.field("vector").type.list_size
        table.create_index(
            "vector",
            "IVF_PQ",
            name=VECTOR,
            metric="cosine",
            num_partitions=partitions(table),
            num_sub_vectors=max(dim // DIMENSIONS_A_CODE, 1),
        )
        table.create_scalar_index("folder", "BITMAP", name=FOLDER)
    elif unindexed(table) > UNINDEXED_SHARE * table.count_rows():
        table.optimize.optimize_indices()


def unindexed(table: lance.LanceDataset) -> int:
    """Rows that a search has to look at one by one."""
    return int(table.stats.index_stats(VECTOR)["num_unindexed_rows"])


def tables(out: Storage) -> list[str]:
    """All tables under a root."""
    found = [out.images, out.rejects, out.files, out.copies]
    for kind in ("embeddings", "codes", "duplicates"):
        found += [out.path(kind, name) for name in list_folder(out.path(kind)) if name.endswith(".lance")]
    return found


def compact(url: str, keep: timedelta) -> tuple[int, int]:
    """Join small files and remove versions older than `keep`, except tagged ones.

    Returns:
        (files joined, bytes removed).
    """
    table = find_table(url)
    if table is None:
        return 0, 0
    joined = table.optimize.compact_files()
    removed = open_table(url).cleanup_old_versions(older_than=keep, error_if_tagged_old_versions=False)
    return int(joined.fragments_removed), int(removed.bytes_removed)


def tag(url: str, version: int, name: str) -> None:
    """Name a version, which is then never removed; a name that stands for it already is left."""
    if name not in _tags(url):
        try:
            persistently(url, lambda: open_table(url).tags.create(name, version))
        except ValueError:
            if name not in _tags(url):  # else another process was first
                raise
    named = _tags(url)[name]
    if named != version:
        raise ClipgenError(f"the tag {name} of {url} is version {named}, not {version}: delete the tag")


def _tags(url: str) -> dict[str, int]:
    found = persistently(url, lambda: open_table(url).tags.list())
    return {name: int(tag["version"]) for name, tag in found.items()}
