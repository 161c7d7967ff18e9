"""Token shards: Parquet parts with a manifest, written whole and refused when they do not match.

Knows the contract in schema.py; knows no model.
"""

import hashlib
from collections.abc import Iterable
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

    def take(self, rows: np.ndarray) -> "Rows":
        return Rows(self.codes[rows], self.embeddings[rows])


class TokenShards:
    """The token shards at `url`, checked against their manifest.

    Raises:
        ClipgenError: a part that is missing, or whose SHA-256 or row count is not the manifest's.
    """

    def __init__(self, url: str, seed: int) -> None:
        self.url, self.manifest = url, read_manifest(url)
        self.train = self._read(self.manifest.train)
        self.validation = self._read(self.manifest.validation)
        self._order = ShuffledOrder(len(self.train), seed)

    def batch(self, step: int, size: int) -> Rows:
        """The training rows of a step."""
        return self.train.take(self._order.batch(step, size))

    def _read(self, parts: Iterable[Part]) -> Rows:
        tables = [self._read_part(part) for part in parts]
        if not tables:
            raise ClipgenError(f"the token shards at {self.url} hold no rows: run token_shards again")
        table = pa.concat_tables(tables)
        codes = table["codes"].combine_chunks()
        grid = codes.flatten().to_numpy().reshape(len(codes), -1)
        return Rows(grid, vectors(table, "embedding"))

    def _read_part(self, part: Part) -> pa.Table:
        path = f"{self.url}/{part.file}"
        data = storage.read_bytes(path) if storage.exists(path) else b""
        if _sha256(data) != part.sha256:
            raise ClipgenError(f"{path} is not the file its manifest names: run token_shards again")
        return pq.read_table(pa.BufferReader(data))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
