"""Forget images whose files have left the source, after a grace period: the setting images.mirror_after_days.

Files that were read and are not listed are noted in missing.lance with the time at which a run first missed
them. One that comes back is struck off. A source that is empty or not mounted looks like one whose files have
left, so nothing is forgotten if that were most images.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa

from clipgen_core.data.files import AT_ONCE, remove_record, under
from clipgen_core.data.forget import forget_places, held_by, holders, places
from clipgen_core.data.keys import Lookup, joined, keys_of_texts
from clipgen_core.data.listing import UNREADABLE
from clipgen_core.data.sources import File, Source, in_lists
from clipgen_core.data.tables import create_table, delete, one_of, open_table, scan, upsert
from clipgen_core.errors import ClipgenError
from clipgen_core.schema import MISSING
from clipgen_core.storage import Storage

MOST = 0.5  # of the images of a source or folder that may be forgotten at once


class Listing:
    """The files that a source holds; `add` takes them while they are listed, 16 bytes each."""

    def __init__(self) -> None:
        self.keys, self.unreadable = list[np.ndarray](), list[str]()

    def add(self, files: Iterable[File]) -> None:
        """Add some of the files."""
        listed = list(files)
        self.keys.append(keys_of_texts(file.uri for file in listed))
        self.unreadable += [f"{file.uri}/" for file in listed if file.stamp == UNREADABLE]

    def lacks(self, uris: list[str]) -> list[bool]:
        """Which files are gone; a file in a folder that may not be read counts as there."""
        self.keys = [joined(iter(self.keys))] if len(self.keys) != 1 else self.keys
        hidden = tuple(self.unreadable)
        absent = Lookup(self.keys[0]).find(keys_of_texts(uris)) < 0
        return [bool(gone) and not uri.startswith(hidden) for uri, gone in zip(uris, absent, strict=True)]


@dataclass(frozen=True)
class Mirrored:
    """What a run found: files that are missing and wait, and images that were forgotten."""

    missing: int
    forgotten: int


def mirror(
    out: Storage, source: Source, folder: str | None, listing: Listing, days: float, now: datetime
) -> Mirrored:
    """Note which files have left the source, and forget those that were missed for long enough.

    The record of the files is removed last, so that a call that was killed can be repeated.

    Args:
        out: The root.
        source: Whose files are meant.
        folder: One of its top-level folders; all if None.
        listing: All files that are there.
        days: After how many days they are forgotten.
        now: The time of this run.

    Returns:
        What was found.

    Raises:
        ClipgenError: Too many of the images would be forgotten.
    """
    where = under(source, folder)
    _note(out, where, listing, now)
    since = dict(_noted(out, where))
    expired = {uri for uri, at in since.items() if now - at >= timedelta(days=days)}
    forgotten = _forget(out, expired, where, folder, source, days) if expired else 0
    return Mirrored(missing=len(since) - len(expired), forgotten=forgotten)


def _note(out: Storage, where: str, listing: Listing, now: datetime) -> None:
    """Add the files that are gone to those that were missed before, and strike off those that are back."""
    create_table(out.missing, MISSING)
    gone = dict[str, str]()
    for batch in scan(open_table(out.files), ["uri", "folder"], where):
        uris = batch["uri"].to_pylist()
        rows = zip(uris, batch["folder"].to_pylist(), listing.lacks(uris), strict=True)
        gone |= {uri: folder for uri, folder, lacks in rows if lacks}
    back = [uri for uri, _ in _noted(out, where) if uri not in gone]
    for some in in_lists(back, AT_ONCE):
        delete(out.missing, one_of("uri", some))
    columns = {"uri": list(gone), "folder": list(gone.values()), "since": [now] * len(gone)}
    upsert(out.missing, pa.table(columns, schema=MISSING), "uri", overwrite=False)


def _noted(out: Storage, where: str) -> Iterable[tuple[str, datetime]]:
    for batch in scan(open_table(out.missing), ["uri", "since"], where):
        yield from zip(batch["uri"].to_pylist(), batch["since"].to_pylist(), strict=True)


def _forget(
    out: Storage, files: set[str], where: str, folder: str | None, source: Source, days: float
) -> int:
    """Forget the images of files, and the files."""
    candidates = (uri for uri in places(out, where) if not files.isdisjoint(holders(uri)))
    gone = held_by(out, candidates, files)
    lost, held = forget_places(out, gone, dry_run=True), open_table(out.images).count_rows(where)
    if lost > MOST * held:
        prune, forget = f"clipgen prune {folder} --source", "clipgen forget --missing"
        named = f"{prune if folder else forget} {source.url} --root {out.root}"
        raise ClipgenError(
            f"{lost} of the {held} images of {folder or source.url} have been missing for {days:g} days, too "
            f"many to forget unasked: check the source, or forget them by `{named}`"
        )
    forget_places(out, gone)
    remove_record(out, sorted(files))
    return lost
