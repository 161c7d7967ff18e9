"""Token shards: Parquet files with a manifest, published atomically and checked when they are read.

Knows the contract in schema.py, but no model.
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

from clipgen_core import filesystem
from clipgen_core.data.order import ShuffledOrder
from clipgen_core.data.prefetch import bounded_map
from clipgen_core.data.tables import vectors
from clipgen_core.errors import ClipgenError, first_line
from clipgen_core.schema import Part, TokenManifest
from clipgen_core.storage import located, portable, remedy, root_of

MANIFEST = "manifest.json"
READERS = 4  # files that are read at once


def write_part(folder: Path, name: str, rows: pa.Table) -> Part:
    """Write one Parquet file into a draft folder.

    Args:
        folder: The draft folder.
        name: Name of the file.
        rows: Its rows.

    Returns:
        The file's entry in the manifest.
    """
    pq.write_table(rows, folder / name, compression="zstd")
    return Part(file=name, rows=rows.num_rows, sha256=_sha256((folder / name).read_bytes()))


def publish(draft: Path, manifest: TokenManifest, url: str) -> None:
    """Write the manifest and publish the folder atomically.

    Args:
        draft: The draft folder, with all Parquet files.
        manifest: The manifest.
        url: The folder to publish.
    """
    (draft / MANIFEST).write_text(portable(manifest, root_of(url)).model_dump_json(indent=2))
    filesystem.publish_folder(draft, url, MANIFEST)


def read_manifest(url: str) -> TokenManifest:
    """Read the manifest of the token shards at a URL.

    Raises:
        ClipgenError: It does not exist or is damaged.
    """
    path = f"{url}/{MANIFEST}"
    if not filesystem.exists(path):
        raise ClipgenError(
            f"there are no token shards at {url}: check the path, or {remedy('tokens', 'first')}"
        )
    try:
        stored = TokenManifest.model_validate_json(filesystem.read_bytes(path))
    except ValidationError as error:
        raise ClipgenError(f"{path} is damaged ({first_line(error)}): {remedy('tokens')}") from error
    return located(stored, root_of(url))


def columns(url: str, manifest: TokenManifest) -> pa.Schema:
    """The columns of token shards.

    Args:
        url: The shards.
        manifest: Their manifest.

    Returns:
        The schema of the first file, of which only the end is read.
    """
    filesystem_, path = filesystem.url_to_fs(f"{url}/{(manifest.train + manifest.validation)[0].file}")
    with filesystem_.open(path) as file:
        return pq.read_schema(file)


def is_whole(url: str) -> bool:
    """Whether there are token shards and every file is the one that the manifest names; reads them all."""
    try:
        manifest = read_manifest(url)
    except ClipgenError:
        return False
    parts = (*manifest.train, *manifest.validation)
    return all(bounded_map(lambda part: _read(url, part) is not None, parts, READERS, ahead=READERS))


@dataclass(frozen=True)
class Rows:
    """Rows of token shards: codes, uint16 or uint32 [n, t], and embeddings, float32 [n, d]."""

    codes: np.ndarray
    embeddings: np.ndarray

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: np.ndarray | slice) -> "Rows":
        """The rows at some positions."""
        return Rows(self.codes[rows], self.embeddings[rows])

    @staticmethod
    def join(parts: Sequence["Rows"]) -> "Rows":
        """Concatenate rows."""
        return Rows(
            np.concatenate([part.codes for part in parts]),
            np.concatenate([part.embeddings for part in parts]),
        )


class TokenShards:
    """Random access to token shards; files are read and checked when they are needed.

    Args:
        url: Folder of the token shards.
        seed: Seed of the order of training rows.

    Raises:
        ClipgenError: There are no token shards, they hold no rows, or a file is missing or its SHA-256 is not
            the one in the manifest.
    """

    def __init__(self, url: str, seed: int) -> None:
        self.url, self.manifest = url, read_manifest(url)
        if not self.manifest.train or not self.manifest.validation:
            raise ClipgenError(f"the token shards at {url} hold no rows: {remedy('tokens')}")
        self.order = ShuffledOrder([part.rows for part in self.manifest.train], seed)
        self._part = functools.lru_cache(2 * self.order.window)(self._read)

    @property
    def rows(self) -> int:
        """Number of training rows."""
        return self.order.rows

    def batch(self, step: int, size: int) -> Rows:
        """The training rows of a step.

        Args:
            step: The step, from 0.
            size: Rows of a batch.

        Returns:
            `size` rows.
        """
        return self.take(self.order.batch(step, size))

    def take(self, rows: np.ndarray) -> Rows:
        """The training rows of some row numbers, int64 [n], in that order."""
        part_of = np.searchsorted(self.order.first, rows, side="right") - 1
        taken, back = [], np.argsort(np.argsort(part_of, kind="stable"), kind="stable")
        for part in np.unique(part_of):
            inside = rows[part_of == part] - self.order.first[part]
            taken.append(self._part(self.manifest.train[part]).take(inside))
        return Rows.join(taken).take(back)

    def validation(self, most: int = 4096) -> Rows:
        """The first held-out rows, at most `most`."""
        parts = self.manifest.validation
        enough = int(np.searchsorted(np.cumsum([part.rows for part in parts]), most)) + 1
        return Rows.join([self._read(part) for part in parts[:enough]]).take(slice(most))

    def embeddings(self) -> Iterator[np.ndarray]:
        """The training embeddings file by file, float32 [n, d] each."""
        for part in self.manifest.train:
            yield self._read(part).embeddings

    def _read(self, part: Part) -> Rows:
        data = _read(self.url, part)
        if data is None:
            raise ClipgenError(
                f"{self.url}/{part.file} is not the file that its manifest names: {remedy('tokens')}, "
                "which mends it"
            )
        table = pq.read_table(pa.BufferReader(data), columns=["codes", "embedding"])
        codes = table["codes"].combine_chunks()
        return Rows(codes.flatten().to_numpy().reshape(len(codes), -1), vectors(table, "embedding"))


def _read(url: str, part: Part) -> bytes | None:
    """The bytes of a file; None if it is missing, or not the one that the manifest names."""
    path = f"{url}/{part.file}"
    data = filesystem.read_bytes(path) if filesystem.exists(path) else b""
    return data if _sha256(data) == part.sha256 else None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
