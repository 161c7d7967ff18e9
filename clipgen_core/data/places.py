"""Finds images of a root by names of files: URIs, paths, names in a source, and samples of archives."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from clipgen_core.data.columns import sample_of
from clipgen_core.data.keys import KEY, Lookup, keys_of_ids, keys_of_texts
from clipgen_core.data.names import text_of
from clipgen_core.data.tables import find_table, open_table, scan
from clipgen_core.filesystem import url_to_fs
from clipgen_core.storage import Storage

ID, NO_ID = re.compile("[0-9a-f]{64}"), "0" * 64


class Places:
    """The images of a root by their places, those of copies included.

    Args:
        out: The root.
        source: The folder that relative names are in; None if all names are whole or those of samples.

    Raises:
        ClipgenError: There is no images table.
    """

    def __init__(self, out: Storage, source: str | None = None) -> None:
        self.table = open_table(out.images)
        self.base = _base(source) if source else None
        ids, names, rows = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
        for batch in scan(self.table, ["id", "uri"]):
            first = sum(map(len, ids))
            ids.append(keys_of_ids(batch["id"]))
            _add(batch["uri"].to_pylist(), first + np.arange(batch.num_rows), names, rows)
        self.ids = Lookup(np.concatenate([np.zeros(0, KEY), *ids]))
        copies = find_table(out.copies)
        for batch in scan(copies, ["id", "uri"]) if copies else ():
            of = self.ids.find(keys_of_ids(batch["id"]))
            _add(np.array(batch["uri"].to_pylist())[of >= 0].tolist(), of[of >= 0], names, rows)
        every = np.concatenate([np.zeros(0, KEY), *names])
        keys, at, times = np.unique(every, return_index=True, return_counts=True)
        self.names = Lookup(keys[times == 1])
        self.rows = np.concatenate([np.zeros(0, np.int64), *rows])[at[times == 1]]

    def of_ids(self, ids: Sequence[str | None]) -> np.ndarray:
        """The rows of the images table, int64 [n], -1 where there is none."""
        known = [one if one and ID.fullmatch(one) else NO_ID for one in ids]
        return self.ids.find(keys_of_ids(pa.array(known, pa.string())))

    def of_names(self, names: Sequence[str | None]) -> np.ndarray:
        """The rows of the images table, int64 [n]; -1 where a name stands for no image, or for several."""
        found = np.full(len(names), -1)
        for whole in (self._uri, _sample):
            texts = [whole(text_of(name)) if name else "" for name in names]
            at = self.names.find(keys_of_texts(texts))
            found = np.where(found < 0, np.where(at < 0, -1, self.rows[at]) if len(self.rows) else -1, found)
        return found

    def _uri(self, name: str) -> str:
        if "://" in name:
            return name
        if name.startswith("/"):
            return f"file://{name}"
        return f"{self.base}/{name}" if self.base else ""


def _base(source: str) -> str:
    store, root = url_to_fs(source if "://" in source else str(Path(source).expanduser()))
    return text_of(store.unstrip_protocol(root.rstrip("/")))


def _sample(name: str) -> str:
    return f"#{sample_of(name)}"


def _add(uris: list[str], rows: np.ndarray, names: list[np.ndarray], numbers: list[np.ndarray]) -> None:
    """Note the rows of places by their URIs, and of members of archives also by their samples."""
    names.append(keys_of_texts(uris))
    numbers.append(rows)
    members = [number for number, uri in enumerate(uris) if "#" in uri]
    names.append(keys_of_texts(_sample(uris[number].partition("#")[2]) for number in members))
    numbers.append(rows[members])
