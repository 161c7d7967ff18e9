"""Read the images of a source that are new or have changed, and commit them batch by batch.

A batch is committed whole: images first, the record of their files last. A killed run reads at most that
batch (or the archive it was in) again, and merging leaves one row an image.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from clipgen_core.data.examine import Outcome, Task, examine, referable
from clipgen_core.data.files import FilesRead, forget_rejects
from clipgen_core.data.forget import forget_places
from clipgen_core.data.ingested import store
from clipgen_core.data.keys import SetDigest, keys_of_texts
from clipgen_core.data.members import Members
from clipgen_core.data.mirror import Listing, Mirrored, mirror
from clipgen_core.data.prefetch import bounded_map
from clipgen_core.data.remote import REQUESTS
from clipgen_core.data.sources import LISTED_AT_ONCE, File, Source, in_lists, keys_of_files
from clipgen_core.data.tables import delete, one_of, upsert
from clipgen_core.progress import track
from clipgen_core.schema import FILES, REJECTS
from clipgen_core.settings.images import Config
from clipgen_core.storage import Storage


@dataclass
class Ingest:
    """One run: the rows that wait to be committed, and counts.

    started: files whose first image is among the waiting rows; items, bad: of the file being read;
    size: bytes of the waiting images; archives: how many images each whole archive held; again: files that
    were read before and have changed; places: which image is where in them now, None if none can be used;
    members: of archives among them; listing: the files that are there, if the source is mirrored; damaged,
    lacking: the first file of metadata that cannot be read, and how many images lack what such files say.
    """

    config: Config
    out: Storage
    source: Source
    rows: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    items: int = 0
    bad: int = 0
    size: int = 0
    found: int = 0
    rejected: int = 0
    added: int = 0
    replaced: int = 0
    archives: list[int] = field(default_factory=list)
    again: set[str] = field(default_factory=set)
    members: Members = field(default_factory=Members)
    listing: Listing = field(default_factory=Listing)
    places: dict[str, str | None] = field(default_factory=dict)
    listings: dict[str, SetDigest] = field(default_factory=dict)
    damaged: str = ""
    lacking: int = 0

    def read(self, folder: str | None) -> float:
        """Read, examine and commit what is new or has changed; returns images per second.

        Of a store, many files are read at once, because that is waiting; decoding them takes few threads.
        """
        readers, tasks = self.config.readers, self.unread(folder)
        if not self.source.is_local:
            tasks = bounded_map(self.fetch, tasks, REQUESTS, 2 * REQUESTS, weight=lambda task: task.size)
        outcomes = bounded_map(self.examine, tasks, readers, 4 * readers, weight=lambda task: task.size)
        with referable(self.source, folder), track("images", None, "images") as meter:
            for outcome in outcomes:
                self.add(outcome)
                meter.advance(0 if outcome.ends else 1)
            self.commit()
            return meter.rate

    def unread(self, folder: str | None) -> Iterator[Task]:
        """The images of files that are new or have changed; the others are counted from the record."""
        forget_rejects(self.out, self.source, folder, every=self.config.retry_rejects)
        record = FilesRead.of(self.out, self.source, folder, without_rejects=self.config.retry_rejects)
        record = record.as_changed() if self.config.read_again else record
        self.archives = record.items[record.items > 1].tolist()
        for one in self.source.folders() if folder is None else [folder]:
            self.listings[one] = SetDigest()
            for files in in_lists(self.source.files(one), LISTED_AT_ONCE):
                if self.config.mirror_after_days is not None:
                    self.listing.add(files)
                for file in self._changed(record, files, self.listings[one]):
                    yield from self._tasks(file)

    def _tasks(self, file: File) -> Iterator[Task]:
        if self.source.is_archive(file):
            for item in self.source.items(file):
                yield Task(file, item, was_read=True)
        else:
            yield Task(file)
        yield Task(file, ends=True)

    def _changed(self, record: FilesRead, files: list[File], listing: SetDigest) -> list[File]:
        """The files that are new, have changed or are read again; notes those that were read before."""
        keys = keys_of_files(files)
        listing.add(keys)
        rows = record.rows.find(keys)
        unchanged = rows[rows >= 0]
        self.found += int(record.items[unchanged].sum())
        self.rejected += int(record.rejected[unchanged].sum())
        changed = [files[i] for i in np.flatnonzero(rows < 0)]
        before = record.uris.find(keys_of_texts(file.uri for file in changed)) >= 0
        rewritten = before & (record.states.find(keys[rows < 0]) < 0)
        self.again |= {changed[i].uri for i in np.flatnonzero(before)}
        self.members.archives |= {changed[i].uri for i in np.flatnonzero(rewritten)}
        return changed

    def mirror(self, folder: str | None) -> Mirrored:
        """Forget what left the source, if that is configured."""
        days, now = self.config.mirror_after_days, datetime.now(UTC)
        none = Mirrored(missing=0, forgotten=0)
        return none if days is None else mirror(self.out, self.source, folder, self.listing, days, now)

    def fetch(self, task: Task) -> Task:
        """The task with the image of its file, if it holds one."""
        if task.ends or task.was_read:
            return task
        return Task(task.file, next(self.source.items(task.file), None), was_read=True)

    def examine(self, task: Task) -> Outcome:
        item = self.fetch(task).item
        return examine(self.config, task.file, item) if item else Outcome(task.file, ends=task.ends)

    def add(self, outcome: Outcome) -> None:
        """Count an outcome, and commit when enough rows wait."""
        file, held = outcome.file, self._held(outcome)
        if not self.items:
            self.started.append(file.uri)
        if outcome.ends:
            counts = {"items": self.items, "rejected": self.bad}
            self.files.append({"uri": file.uri, "folder": file.folder, "stamp": file.stamp, **counts})
            self.archives += [self.items] if self.items > 1 else []
            self.items = self.bad = 0
        self.items, self.found = self.items + held, self.found + held
        if file.uri in self.again and (held_now := outcome.row or outcome.reject):
            self.places[held_now["uri"]] = held_now.get("id")
        self.members.note(outcome)
        self.lacking, self.damaged = self.lacking + bool(outcome.unread), self.damaged or outcome.unread
        if outcome.row:
            self.rows.append(outcome.row)
            self.size += len(outcome.row["image"])
        if outcome.reject:
            self.rejects.append(outcome.reject)
            self.bad, self.rejected = self.bad + held, self.rejected + held
        full = max(map(len, (self.rows, self.rejects, self.files))) >= self.config.batch_size
        if full or self.size >= self.config.batch_bytes:
            self.commit()

    def _held(self, outcome: Outcome) -> int:
        """How many images an outcome stands for; a cut archive lacks as many as other archives hold more."""
        if outcome.lost:
            return outcome.lost if outcome.row or outcome.reject else 0
        return max(round(statistics.median(self.archives or [0])) - self.items, 1)

    def commit(self) -> None:
        """Forget what changed files held before; then commit images, copies, rejects in the place of earlier
        ones, forget what left archives, and last commit the files read."""
        if self.places:
            now = {uri: image_id for uri, image_id in self.places.items() if image_id}
            self.replaced += forget_places(self.out, list(self.places), now)
        added = store(self.out, self.rows, self.source.columns)
        delete(self.out.rejects, one_of("file", self.started))
        upsert(self.out.rejects, _table(self.rejects, REJECTS), "uri", overwrite=True)
        self.replaced += self.members.forget_left(self.out)
        upsert(self.out.files, _table(self.files, FILES), "uri", overwrite=True)
        self.added += added
        self.rows, self.rejects, self.files, self.started, self.size, self.places = [], [], [], [], 0, {}


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=schema)
