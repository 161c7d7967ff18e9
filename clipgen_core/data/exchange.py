"""Embeddings in the layout of clip-retrieval: img_emb/img_emb_N.npy beside metadata/metadata_N.parquet.

A row of a .npy file belongs to the row of the Parquet file with the same number, whose `image_path` names the
image. Knows files and tables; knows no model.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipgen_core import filesystem
from clipgen_core.data.embeddings import EmbeddingTable
from clipgen_core.data.keys import joined
from clipgen_core.data.tables import one_of, open_table, scan_keys, vectors
from clipgen_core.errors import ClipgenError, first_line
from clipgen_core.progress import track
from clipgen_core.settings.images import OWN

PART = re.compile(r"(?:img_emb|metadata)_(\d+)\.(?:npy|parquet)$")
MADE_BY = "embeddings.json"  # which CLIP; not part of clip-retrieval's layout
ROWS = 100_000  # of a part that is written
AT_ONCE = 4096  # rows


@dataclass(frozen=True)
class Part:
    """A part of exported embeddings, by the addresses of its two files."""

    vectors: str
    metadata: str

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and numbers a row.

        Raises:
            ClipgenError: The files have different numbers of rows, or the vectors are no matrix of floats.
        """
        with _opened(self.vectors) as file, _opened(self.metadata) as beside:
            shape, _ = _header(self.vectors, file)
            rows = _parquet(self.metadata, beside).metadata.num_rows
        if rows != shape[0]:
            raise ClipgenError(
                f"{self.vectors} has {shape[0]} rows and {self.metadata} has {rows}: export the part again"
            )
        return shape

    def rows(self) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
        """The rows, a bounded number at once: their metadata, and their vectors as float32 [n, d]."""
        with _opened(self.vectors) as file, _opened(self.metadata) as beside:
            shape, dtype = _header(self.vectors, file)
            parquet = _parquet(self.metadata, beside)
            names = [name for name in ("id", "image_path") if name in parquet.schema_arrow.names]
            if not names:
                raise ClipgenError(f"{self.metadata} has no column image_path: add it, or a column id")
            for batch in parquet.iter_batches(batch_size=AT_ONCE, columns=names):
                data = file.read(batch.num_rows * shape[1] * dtype.itemsize)
                if len(data) < batch.num_rows * shape[1] * dtype.itemsize:
                    raise ClipgenError(f"{self.vectors} is cut short: export the part again")
                yield batch, np.frombuffer(data, dtype).reshape(-1, shape[1]).astype(np.float32)


def parts(folder: str) -> list[Part]:
    """The parts in a folder, by number.

    Raises:
        ClipgenError: There is none, or one has no counterpart.
    """
    found: list[dict[int, str]] = []
    for kind, ending in (("img_emb", ".npy"), ("metadata", ".parquet")):
        names = [name for name in filesystem.list_folder(f"{folder}/{kind}") if name.endswith(ending)]
        numbered = ((PART.match(name), name) for name in names)
        found.append({int(part[1]): f"{folder}/{kind}/{name}" for part, name in numbered if part})
    if not any(found):
        raise ClipgenError(
            f"{folder} holds no embeddings: name the folder that holds img_emb/img_emb_0.npy and "
            "metadata/metadata_0.parquet"
        )
    if alone := found[0].keys() ^ found[1].keys():
        number = min(alone)
        has, lacks = ("img_emb", "metadata") if number in found[0] else ("metadata", "img_emb")
        raise ClipgenError(f"{folder}/{has} has the part {number} and {folder}/{lacks} has none: add it")
    return [Part(found[0][number], found[1][number]) for number in sorted(found[0])]


def made_by(folder: str) -> dict[str, Any]:
    """The clip, clip_key and rows that `export` noted; nothing if another program wrote the folder."""
    url = f"{folder}/{MADE_BY}"
    if not filesystem.exists(url):
        return {}
    try:
        return dict(json.loads(filesystem.read_bytes(url)))
    except (ValueError, TypeError) as error:
        raise ClipgenError(f"{url} is damaged ({first_line(error)}): remove it, or export again") from error


def _opened(url: str) -> Any:
    store, path = filesystem.url_to_fs(url)
    return filesystem.retried(store.open, path, "rb")


def _header(url: str, file: Any) -> tuple[tuple[int, int], np.dtype[Any]]:
    """The shape and the dtype of a .npy file, which is read up to its numbers."""
    try:
        format_, version = np.lib.format, np.lib.format.read_magic(file)
        read = format_.read_array_header_1_0 if version == (1, 0) else format_.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except (ValueError, OSError, EOFError) as error:
        raise ClipgenError(f"{url} is no .npy file ({first_line(error)}): export the part again") from error
    if len(shape) != 2 or fortran or dtype.kind != "f":
        raise ClipgenError(
            f"{url} holds {dtype} {list(shape)}: it needs rows of float16, float32 or float64, one an image"
        )
    return (shape[0], shape[1]), dtype


def _parquet(url: str, file: Any) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise ClipgenError(
            f"{url} is no Parquet file ({first_line(error)}): export the part again"
        ) from error


def export(table: EmbeddingTable, images: str, folder: str) -> tuple[int, int]:
    """Write the embeddings of the images of an images table, with the images' addresses and metadata.

    Args:
        table: The embeddings.
        images: URL of the images table.
        folder: A new folder, local or an fsspec URL.

    Returns:
        How many rows were written, and how many were left out because their images are gone.

    Raises:
        ClipgenError: The folder holds files, or there is no room for it.
    """
    if filesystem.list_folder(folder):
        raise ClipgenError(f"{folder} holds files: choose a new folder")
    keys, stored = table.keys(), joined(scan_keys(open_table(images)))
    rows = np.flatnonzero(np.isin(keys, stored))
    starts = range(0, len(rows), ROWS)
    full = f"there is no room for the embeddings at {folder}: make some, or choose another folder"
    with filesystem.room_needed(full), filesystem.draft_folder(folder) as scratch:
        draft = Path(scratch) / "embeddings"
        for kind in ("img_emb", "metadata"):
            (draft / kind).mkdir(parents=True)
        with track("export", len(rows), "rows") as meter:
            for number, start in enumerate(starts):
                name = str(number).zfill(len(str(max(len(starts) - 1, 0))))
                for done in _write(table, images, rows[start : start + ROWS], draft, name):
                    meter.advance(done)
        made = {"clip": table.clip, "clip_key": table.clip_key, "rows": len(rows)}
        (draft / MADE_BY).write_text(json.dumps(made, indent=2))
        filesystem.publish_folder(draft, folder, MADE_BY)
    return len(rows), len(keys) - len(rows)


def _write(table: EmbeddingTable, images: str, rows: np.ndarray, draft: Path, name: str) -> Iterator[int]:
    """Write a part, some rows at once; yields their numbers."""
    source = open_table(images)
    further = [field for field in source.schema if field.name not in OWN]
    schema = pa.schema([pa.field("image_path", pa.string()), pa.field("id", pa.string()), *further])
    matrix = (draft / "img_emb" / f"img_emb_{name}.npy").open("wb")
    with matrix, pq.ParquetWriter(draft / "metadata" / f"metadata_{name}.parquet", schema) as writer:
        shape = {"descr": "<f4", "fortran_order": False, "shape": (len(rows), table.dim)}
        np.lib.format.write_array_header_1_0(matrix, shape)
        for start in range(0, len(rows), AT_ONCE):
            taken = table.table.take(rows[start : start + AT_ONCE].tolist(), columns=["id", "vector"])
            ids = taken["id"].to_pylist()
            columns = ["id", "uri", *(field.name for field in further)]
            found = source.to_table(columns=columns, filter=one_of("id", ids)).to_pylist()
            beside = {row["id"]: row | {"image_path": row["uri"]} for row in found}
            writer.write_table(pa.Table.from_pylist([beside[one] for one in ids], schema=schema))
            matrix.write(vectors(taken).astype("<f4").tobytes())
            yield len(ids)
