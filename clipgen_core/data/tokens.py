"""Token shards: Parquet parts with a manifest, written whole and refused when they do not match.

Knows the contract in schema.py; knows no model.
"""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from clipgen_core import storage
from clipgen_core.data.order import ShuffledOrder
from clipgen_core.data.tables import vectors
from clipgen_core.errors import ClipgenError, first_line
from clipgen_core.schema import Part, TokenManifest

MANIFEST = "manifest.json"


def write_part(folder: Path, name: str, rows: pa.Table) -> Part:
    """Write one Parquet part into a draft folder."""
    pq.write_table(rows, folder / name, compression="zstd")
    return Part(file=name, rows=rows.num_rows, sha256=_sha256((folder / name).read_bytes()))


def publish(draft: Path, manifest: TokenManifest, url: str) -> None:
    """Write the manifest and give the folder its final name."""
    (draft / MANIFEST).write_text(manifest.model_dump_json(indent=2))
    storage.publish_folder(draft, url, MANIFEST)


def read_manifest(url: str) -> TokenManifest:
    path = f"{url}/{MANIFEST}"
    if not storage.exists(path):
        raise ClipgenError(f"there are no token shards at {url}: run token_shards first")
    try:
        return TokenManifest.model_validate_json(storage.read_bytes(path))
    except ValidationError as error:
        raise ClipgenError(f"{path} is damaged ({first_line(error)}): run token_shards again") from error


@dataclass(frozen=True)
class Rows:
    """codes [n, t] uint16 or uint32; embeddings float32 [n, d]."""

    codes: np.ndarray
    embeddings: np.ndarray

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: np.ndarray | slice) -> "Rows":
        return Rows(self.codes[rows], self.embeddings[rows])

    @staticmethod
    def join(parts: Sequence["Rows"]) -> "Rows":
        return Rows(
            np.concatenate([part.codes for part in parts]),
            np.concatenate([part.embeddings for part in parts]),
        )


class TokenShards:
    """The token shards at `url`; parts are read when needed, few at a time, and checked then.

    Raises:
        ClipgenError: a part that is missing, or whose SHA-256 is not the manifest's.
    """

    def __init__(self, url: str, seed: int) -> None:
        self.url, self.manifest = url, read_manifest(url)
        if not self.manifest.train or not self.manifest.validation:
            raise ClipgenError(f"the token shards at {url} hold no rows: run token_shards again")
        self.order = ShuffledOrder([part.rows for part in self.manifest.train], seed)
        self._part = functools.lru_cache(2 * self.order.window)(self._read)

    @property
    def rows(self) -> int:
        """Training rows."""
        return self.order.rows

    def batch(self, step: int, size: int) -> Rows:
        """The training rows of a step."""
        return self.take(self.order.batch(step, size))

    def take(self, rows: np.ndarray) -> Rows:
        """Training rows by number, in the order asked for."""
        part_of = np.searchsorted(self.order.first, rows, side="right") - 1
        found, back = [], np.argsort(np.argsort(part_of, kind="stable"), kind="stable")
        for part in np.unique(part_of):
            inside = rows[part_of == part] - self.order.first[part]
            found.append(self._part(self.manifest.train[part]).take(inside))
        return Rows.join(found).take(back)

    def validation(self, most: int = 4096) -> Rows:
        """The first `most` held-out rows."""
        parts = self.manifest.validation
        enough = int(np.searchsorted(np.cumsum([part.rows for part in parts]), most)) + 1
        return Rows.join([self._read(part) for part in parts[:enough]]).take(slice(most))

    def embeddings(self) -> Iterator[np.ndarray]:
        """The training embeddings part by part, float32 [n, d]."""
        for part in self.manifest.train:
            yield self._read(part).embeddings

    def _read(self, part: Part) -> Rows:
        path = f"{self.url}/{part.file}"
        data = storage.read_bytes(path) if storage.exists(path) else b""
        if _sha256(data) != part.sha256:
            raise ClipgenError(f"{path} is not the file its manifest names: run token_shards again")
        table = pq.read_table(pa.BufferReader(data), columns=["codes", "embedding"])
        codes = table["codes"].combine_chunks()
        return Rows(codes.flatten().to_numpy().reshape(len(codes), -1), vectors(table, "embedding"))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
