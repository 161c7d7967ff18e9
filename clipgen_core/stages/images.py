"""Take in pictures: every picture of a source becomes a row of the images table or of the rejects.

In:  a folder on any fsspec filesystem: picture files, .tar shards, Parquet files, in any subfolders
Out: {root}/images.lance (one row a distinct picture), rejects.lance (uri, reason, detail), files.lance (what
     was read, so that unchanged files are not read again), copies.lance (further places of a picture)
Run: `raw_images` in Dagster, or `clipgen embed FOLDER`.

A batch is committed whole: pictures first, the record of their files last. A killed run reads at most
that batch (or the archive it was in) again, and merging leaves one row a picture.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from clipgen_core.data.keys import Lookup, SetDigest, digest_of_keys
from clipgen_core.data.pixels import Rejected, decode, decode_stored, fit_square, grid
from clipgen_core.data.prefetch import bounded_map
from clipgen_core.data.sources import (
    LISTED_AT_ONCE,
    File,
    Item,
    Source,
    in_lists,
    keys_of_files,
    keys_of_states,
)
from clipgen_core.data.tables import (
    create_table,
    delete,
    find_table,
    one_of,
    open_table,
    quoted,
    scan,
    scan_keys,
    upsert,
)
from clipgen_core.errors import ClipgenError
from clipgen_core.progress import track
from clipgen_core.schema import COPIES, FILES, IMAGES, REJECTS
from clipgen_core.settings.images import Config
from clipgen_core.storage import Storage
from clipgen_core.tracking import Tracker

__all__ = ["Config", "Result", "run"]


@dataclass(frozen=True, kw_only=True)
class Result:
    table: str
    digest: str
    found: int
    added: int
    total: int
    rejected: int
    rejects: dict[str, int]  # reason -> count in this source
    vanished: tuple[str, ...]  # top-level folders that were there before; their rows stay until a prune
    listings: dict[str, str]  # top-level folder -> digest of its files and their stamps

    @property
    def reject_share(self) -> float:
        return self.rejected / max(self.found, 1)


def run(config: Config, *, source: str, out: Storage, tracker: Tracker, folder: str | None = None) -> Result:
    """Read what is new or changed under `source`, or under one of its top-level folders."""
    tracker.params({"config": config.model_dump()})
    opened = Source(source)
    vanished = tuple(sorted(set(known_folders(out, opened)) - set(opened.folders())))
    if folder is not None and folder in vanished:
        raise ClipgenError(f"the folder {folder!r} is no longer under {source}: see `clipgen prune`")
    create_table(out.images, IMAGES)
    taking = _Taking(config, out, opened)
    with track("images", None, "pictures") as meter:
        work = taking.unread(folder)
        for outcome in bounded_map(taking.examine, work, config.readers, 4 * config.readers):
            taking.add(outcome)
            meter.advance(0 if outcome.ends else 1)
        taking.commit()
        speed = meter.rate
    if not taking.found and folder is None:
        raise ClipgenError(f"the source folder {source} is empty: put pictures into it")
    images = open_table(out.images)
    if not images.count_rows():
        raise ClipgenError(
            f"none of the {taking.found} files under {source} is a usable picture: "
            f"{out.rejects} says why for each"
        )
    result = Result(
        table=out.images,
        digest=digest_of_keys(scan_keys(images)),
        found=taking.found,
        added=taking.added,
        total=images.count_rows(),
        rejected=taking.rejected,
        rejects=_reasons(out, opened, folder),
        vanished=vanished,
        listings={name: listing.hex for name, listing in taking.listings.items()},
    )
    counts = {"images": result.total, "images_found": result.found, "images_added": result.added}
    counts |= {f"rejects/{reason}": count for reason, count in result.rejects.items()}
    tracker.metrics({**counts, "reject_share": result.reject_share, "pictures_per_second": speed}, step=0)
    return result


@dataclass(frozen=True)
class Task:
    """A picture to look at, from an archive if `item` is there; or the end of a file."""

    file: File
    item: Item | None = None
    ends: bool = False


@dataclass(frozen=True)
class Outcome:
    """A row for the images table, or one for the rejects; or neither, at a file's end."""

    file: File
    row: dict[str, Any] | None = None
    reject: dict[str, Any] | None = None

    @property
    def ends(self) -> bool:
        return self.row is None and self.reject is None


@dataclass
class _Taking:
    """One run: what waits to be committed, and what was counted."""

    config: Config
    out: Storage
    source: Source
    rows: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)  # files whose first picture is among those waiting
    items: int = 0  # of the file that is being read
    bad: int = 0
    size: int = 0
    found: int = 0
    rejected: int = 0
    added: int = 0
    listings: dict[str, SetDigest] = field(default_factory=dict)

    def unread(self, folder: str | None) -> Iterator[Task]:
        """The pictures of files that are new or have changed; the others are counted as they were."""
        seen = _Seen.of(self.out, self.source, folder, self.config.retry_rejects)
        for one in self.source.folders() if folder is None else [folder]:
            self.listings[one] = SetDigest()
            for files in in_lists(self.source.files(one), LISTED_AT_ONCE):
                for file in self._changed(seen, files, self.listings[one]):
                    yield from self._tasks(file)

    def _tasks(self, file: File) -> Iterator[Task]:
        if self.source.is_archive(file):
            for item in self.source.members(file):
                yield Task(file, item)
        else:
            yield Task(file)
        yield Task(file, ends=True)

    def _changed(self, seen: "_Seen", files: list[File], listing: SetDigest) -> Iterator[File]:
        keys = keys_of_files(files)
        listing.add(keys)
        at = seen.rows.find(keys)
        known = at[at >= 0]
        self.found += int(seen.items[known].sum())
        self.rejected += int(seen.rejected[known].sum())
        for i in np.flatnonzero(at < 0):
            yield files[i]

    def examine(self, task: Task) -> Outcome:
        if task.ends:
            return Outcome(task.file)
        return examine(self.config, task.file, task.item or self.source.read(task.file))

    def add(self, outcome: Outcome) -> None:
        file = outcome.file
        if not self.items:
            self.begun.append(file.uri)
        if outcome.ends:
            counts = {"items": self.items, "rejected": self.bad}
            self.files.append({"uri": file.uri, "folder": file.folder, "stamp": file.stamp, **counts})
            self.items = self.bad = 0
        else:
            self.items, self.found = self.items + 1, self.found + 1
        if outcome.row:
            self.rows.append(outcome.row)
            self.size += len(outcome.row["image"])
        if outcome.reject:
            self.rejects.append(outcome.reject)
            self.bad, self.rejected = self.bad + 1, self.rejected + 1
        full = max(map(len, (self.rows, self.rejects, self.files))) >= self.config.batch_size
        if full or self.size >= self.config.batch_bytes:
            self.commit()

    def commit(self) -> None:
        """Pictures, then copies, then rejects in the place of earlier ones, then the files as read."""
        rows = {row["id"]: row for row in reversed(self.rows)}
        added = upsert(self.out.images, _table(list(rows.values()), IMAGES), "id", overwrite=False)
        if added < len(self.rows):
            upsert(self.out.copies, self._copies(), "uri", overwrite=True)
        delete(self.out.rejects, one_of("file", self.begun))
        upsert(self.out.rejects, _table(self.rejects, REJECTS), "uri", overwrite=True)
        upsert(self.out.files, _table(self.files, FILES), "uri", overwrite=True)
        self.added += added
        self.rows, self.rejects, self.files, self.begun, self.size = [], [], [], [], 0

    def _copies(self) -> pa.Table:
        """The waiting rows whose picture the images table has from another place."""
        where = one_of("id", sorted({row["id"] for row in self.rows}))
        stored = open_table(self.out.images).to_table(columns=["id", "uri"], filter=where)
        home = dict(zip(stored["id"].to_pylist(), stored["uri"].to_pylist(), strict=True))
        copies = [row for row in self.rows if home[row["id"]] != row["uri"]]
        return _table([{name: row[name] for name in COPIES.names} for row in copies], COPIES)


@dataclass(frozen=True)
class _Seen:
    """Files that were read before: a lookup by uri and stamp, and their counts."""

    rows: Lookup
    items: np.ndarray
    rejected: np.ndarray

    @classmethod
    def of(cls, out: Storage, source: Source, folder: str | None, retry_rejects: bool) -> "_Seen":
        columns = ["uri", "stamp", "items", "rejected"]
        where = _under(source, folder) + (" AND rejected = 0" if retry_rejects else "")
        table = find_table(out.files)
        keys, items, rejected = [keys_of_states([])], [np.zeros(0, int)], [np.zeros(0, int)]
        for batch in scan(table, columns, where) if table else ():
            states = zip(batch["uri"].to_pylist(), batch["stamp"].to_pylist(), strict=True)
            keys.append(keys_of_states(states))
            items.append(batch["items"].to_numpy())
            rejected.append(batch["rejected"].to_numpy())
        return cls(Lookup(np.concatenate(keys)), np.concatenate(items), np.concatenate(rejected))


def examine(config: Config, file: File, item: Item) -> Outcome:
    """Decode an item to see that it can be used."""
    bad = {"uri": item.uri, "file": file.uri}
    if item.problem is not None:
        return Outcome(file, reject={**bad, "reason": "unreadable", "detail": item.problem})
    try:
        picture = decode(item.data, max_pixels=config.max_pixels, min_side=config.min_side)
    except Rejected as rejected:
        return Outcome(file, reject={**bad, "reason": rejected.reason, "detail": rejected.detail})
    row = {
        "id": hashlib.sha256(item.data).hexdigest(),
        "uri": item.uri,
        "folder": file.folder,
        "format": picture.format,
        "width": picture.image.width,
        "height": picture.image.height,
        "image": item.data,
    }
    return Outcome(file, row)


def known_folders(out: Storage, source: Source) -> list[str]:
    """The top-level folders of a source that pictures were taken from."""
    table, names = find_table(out.files), set[str]()
    for batch in scan(table, ["folder"], _under(source, None)) if table else ():
        names.update(batch["folder"].unique().to_pylist())
    return sorted(names)


def _under(source: Source, folder: str | None) -> str:
    """A filter: files of a source, or of one of its top-level folders."""
    where = f"starts_with(uri, {quoted(source.base_uri + '/')})"
    return where if folder is None else f"{where} AND folder = {quoted(folder)}"


def _reasons(out: Storage, source: Source, folder: str | None) -> dict[str, int]:
    prefix = source.base_uri + ("/" if not folder else f"/{folder}/")
    counts: dict[str, int] = {}
    table = open_table(out.rejects)
    for batch in scan(table, ["reason"], f"starts_with(uri, {quoted(prefix)})"):
        for reason in batch["reason"].to_pylist():
            counts[reason] = counts.get(reason, 0) + 1
    return counts


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=schema)


def preview(table: str, count: int = 24, size: int = 64) -> Image.Image:
    """A grid of pictures spread over the table."""
    rows = open_table(table)
    chosen = np.linspace(0, rows.count_rows() - 1, min(count, rows.count_rows())).astype(int)
    data = rows.take(chosen.tolist(), columns=["image"])["image"].to_pylist()
    return grid([fit_square(decode_stored(one), size) for one in data], columns=12)
