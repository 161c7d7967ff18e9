"""The record of the files that were read: files.lance, and the rejects that came from them.

Knows uris, stamps and counts; knows nothing of what is in a file.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipgen_core import logs
from clipgen_core.data.archives import is_archive
from clipgen_core.data.folders import is_of
from clipgen_core.data.keys import Lookup, keys_of_texts
from clipgen_core.data.kinds import is_image_name
from clipgen_core.data.listing import UNREADABLE
from clipgen_core.data.sources import Source, in_lists, keys_of_states
from clipgen_core.data.tables import create_table, delete, find_table, one_of, open_table, quoted, scan
from clipgen_core.schema import IMAGES
from clipgen_core.storage import Storage

AT_ONCE = 1000  # rows that one condition names


@dataclass(frozen=True)
class FilesRead:
    """Files that were read before.

    Attributes:
        rows: Those that are not read again, by uri and stamp.
        items: How many images each of these had.
        rejected: How many of them were rejects.
        states: All of them, by uri and stamp.
        uris: All of them, by uri alone.
    """

    rows: Lookup
    states: Lookup
    uris: Lookup
    items: np.ndarray
    rejected: np.ndarray

    @classmethod
    def of(cls, out: Storage, source: Source, folder: str | None, *, without_rejects: bool) -> "FilesRead":
        """Read the record.

        Args:
            out: The root that holds it.
            source: Whose files are meant.
            folder: One of its top-level folders; all if None.
            without_rejects: Let the files that had rejects be read again.

        Returns:
            The record, in memory.
        """
        table, where = find_table(out.files), under(source, folder)
        keys, items, rejected = [keys_of_states([])], [np.zeros(0, int)], [np.zeros(0, int)]
        uris = [keys_of_texts([])]
        for batch in scan(table, ["uri", "stamp", "items", "rejected"], where) if table else ():
            pairs = zip(batch["uri"].to_pylist(), batch["stamp"].to_pylist(), strict=True)
            keys.append(keys_of_states(pairs))
            uris.append(keys_of_texts(batch["uri"].to_pylist()))
            items.append(batch["items"].to_numpy())
            rejected.append(batch["rejected"].to_numpy())
        counts, every = np.concatenate(rejected), np.concatenate(keys)
        kept = (counts == 0) | (not without_rejects)
        states = Lookup(every)
        rows = states if kept.all() else Lookup(every[kept])
        return cls(rows, states, Lookup(np.concatenate(uris)), np.concatenate(items)[kept], counts[kept])

    def as_changed(self) -> "FilesRead":
        """The same record, in which every file counts as changed since."""
        return replace(self, rows=Lookup(keys_of_states([])))


def known_folders(out: Storage, source: Source) -> list[str]:
    """The top-level folders of a source that images were ingested from.

    Args:
        out: The root with the record of files.
        source: Whose folders are meant.

    Returns:
        Their names, sorted.
    """
    table, names = find_table(out.files), set[str]()
    for batch in scan(table, ["uri", "folder"], under(source, None)) if table else ():
        for name in set(batch["folder"].unique().to_pylist()) - names:
            uris = batch.filter(pc.equal(batch["folder"], name))["uri"]
            if any(is_of(uri.as_py(), name, source.base_uri) for uri in uris):  # not of a source in it
                names.add(name)
    return sorted(names)


def forget_rejects(out: Storage, source: Source, folder: str | None, *, every: bool) -> None:
    """Empty the list of rejects of what is about to be read again, so that it names no file that is gone.

    Files that could not be read, and those that an earlier version took for images, then count as not read.

    Args:
        out: The root with the tables of files and rejects.
        source: Whose files are meant.
        folder: One of its top-level folders; all if None.
        every: Whether files with rejects of any reason are read again.
    """
    rejects = find_table(out.rejects)
    if rejects is None or find_table(out.files) is None:
        return
    where = f"starts_with(file, {quoted(source.base_uri + (f'/{folder}/' if folder else '/'))})"
    where = where if every else f"{where} AND reason IN ('unreadable', 'not_an_image')"
    unread, rejected = set[str](), set[str]()
    for batch in scan(rejects, ["file", "reason"], where):
        for file, reason in zip(batch["file"].to_pylist(), batch["reason"].to_pylist(), strict=True):
            if folder != "" or is_of(file, "", source.base_uri):
                is_unread = reason == UNREADABLE or not (is_image_name(file) or is_archive(file))
                (unread if is_unread else rejected).add(file)
    for some in in_lists(sorted(unread), AT_ONCE):
        delete(out.files, one_of("uri", some))
    for some in in_lists(sorted(unread | rejected if every else unread), AT_ONCE):
        delete(out.rejects, one_of("file", some))


def remove_record(out: Storage, files: Sequence[str]) -> None:
    """Remove that files were read, their rejects, and that they were missed; the record of reading is last.

    Args:
        out: The root.
        files: URIs of files.
    """
    for some in in_lists(files, AT_ONCE):
        delete(out.rejects, one_of("file", some))
        if find_table(out.missing) is not None:
            delete(out.missing, one_of("uri", some))
        delete(out.files, one_of("uri", some))


def begin(out: Storage, columns: Iterable[pa.Field] = ()) -> None:
    """Create the images table. If it was lost, all files are read again: what they gave is gone with it.

    Args:
        out: The root.
        columns: Of a new table, besides those of every images table.
    """
    files = find_table(out.files)
    if find_table(out.images) is None and files is not None and files.count_rows():
        logs.line(f"the images table {out.images} is gone: all files are read again")
        for url in (out.copies, out.rejects, out.files):
            delete(url, "true")
    create_table(out.images, pa.schema([*IMAGES, *columns]))


def other_files(out: Storage, source: Source, folder: str | None) -> dict[str, int]:
    """How many files hold no image, for each ending of their names.

    Args:
        out: The root with the record of files.
        source: Where they are.
        folder: One of its top-level folders; all if None.

    Returns:
        Ending to count.
    """
    counts = Counter[str]()
    table = find_table(out.files)
    for batch in scan(table, ["uri"], f"{under(source, folder)} AND items = 0") if table else ():
        counts.update(PurePosixPath(uri).suffix or "without an ending" for uri in batch["uri"].to_pylist())
    return dict(counts)


def reject_reasons(out: Storage, source: Source, folder: str | None) -> dict[str, int]:
    """How many rejects there are for each reason.

    Args:
        out: The root with the table of rejects.
        source: Where they came from.
        folder: One of its top-level folders; all if None.

    Returns:
        Reason to count.
    """
    prefix = source.base_uri + ("/" if not folder else f"/{folder}/")
    counts: dict[str, int] = {}
    for batch in scan(open_table(out.rejects), ["reason"], f"starts_with(uri, {quoted(prefix)})"):
        for reason in batch["reason"].to_pylist():
            counts[reason] = counts.get(reason, 0) + 1
    return counts


def under(source: Source, folder: str | None) -> str:
    """A filter for the files of a source.

    Args:
        source: Whose files are meant.
        folder: One of its top-level folders; all if None.

    Returns:
        An SQL condition on the column `uri`.
    """
    where = f"starts_with(uri, {quoted(source.base_uri + '/')})"
    return where if folder is None else f"{where} AND folder = {quoted(folder)}"
