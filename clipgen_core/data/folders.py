"""What tables hold of each top-level folder. Knows the columns `id` and `folder`, and not what they mean."""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from clipgen_core.data.keys import Lookup, SetDigest, digest_of_keys, joined, keys_of_ids
from clipgen_core.data.tables import find_table, open_table, quoted, scan, scan_keys

if TYPE_CHECKING:
    import lance


@dataclass(frozen=True)
class Folder:
    """The digest and the number of a folder's rows."""

    digest: str
    rows: int


def by_folder(url: str, folder: str | None = None) -> dict[str, Folder]:
    """What a table holds of each folder.

    Args:
        url: A table with the columns `id` and `folder`.
        folder: One top-level folder; all if None.

    Returns:
        Digest and rows by folder; a folder that is asked for and has no row has zero.
    """
    digests = {} if folder is None else {folder: SetDigest()}
    where = None if folder is None else f"folder = {quoted(folder)}"
    for batch in scan(open_table(url), ["id", "folder"], where):
        for name in batch["folder"].unique().to_pylist():
            rows = batch.filter(pc.equal(batch["folder"], name))
            digests.setdefault(name, SetDigest()).add(keys_of_ids(rows["id"]))
    return {name: Folder(digest.hex, digest.count) for name, digest in digests.items()}


def sources(table: "lance.LanceDataset", folder: str) -> Counter[str]:
    """The sources that the rows of a top-level folder came from.

    Args:
        table: A table with the columns `uri` and `folder`.
        folder: The top-level folder.

    Returns:
        The number of rows by the URI of their source.
    """
    counts = Counter[str]()
    for batch in scan(table, ["uri"], f"folder = {quoted(folder)}"):
        counts.update(source_of(uri, folder) for uri in batch["uri"].to_pylist())
    return counts


def source_of(uri: str, folder: str) -> str:
    """The source that an image came from, the outermost if a folder in its folder has the same name.

    Args:
        uri: Of the image, or of its file.
        folder: Its top-level folder, "" if it is in none.

    Returns:
        The URI of the source.
    """
    return uri.partition(f"/{folder}/")[0] if folder else uri.partition("#")[0].rpartition("/")[0]


def is_of(uri: str, folder: str, source: str) -> bool:
    """Whether an image may have come from a source.

    Args:
        uri: Of the image, or of its file.
        folder: Its top-level folder, "" if it is in none.
        source: The URI of the source.

    Returns:
        Whether its folder is directly in the source.
    """
    return uri.startswith(f"{source}/{folder}/") if folder else source_of(uri, "") == source


def lacking(images: str, table: str) -> dict[str, int]:
    """How many images of each folder have no row in another table.

    Args:
        images: The images table.
        table: The table that is to have a row for each image.

    Returns:
        The number by folder, without the folders that lack none.
    """
    there = find_table(table)
    lookup = Lookup(joined(scan_keys(there) if there else iter(())))
    missing: dict[str, int] = {}
    for batch in scan(open_table(images), ["id", "folder"]):
        absent = lookup.find(keys_of_ids(batch["id"])) < 0
        for name in batch["folder"].filter(pa.array(absent)).to_pylist():
            missing[name] = missing.get(name, 0) + 1
    return missing


def digest_of_ids(url: str) -> str:
    """The digest of the ids of a table, which a new version with the same rows does not change."""
    return digest_of_keys(scan_keys(open_table(url)))
