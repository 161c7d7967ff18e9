"""Embed images: one L2-normalised CLIP image embedding for each image of the images table.

In:  the images table; a CLIP by reference
Out: {root}/embeddings/{clip_key}.lance; images that are in it already are not embedded again, and
     another CLIP gets another table
Run: `clip_embeddings` in Dagster, or `clipgen embed FOLDER`.
"""

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from clipgen_core.data.decode import decode_stored
from clipgen_core.data.embeddings import EmbeddingTable
from clipgen_core.data.exchange import Part, made_by, parts
from clipgen_core.data.fill import Filling, Unusable, fill
from clipgen_core.data.folders import lacking
from clipgen_core.data.pixels import not_longer_than
from clipgen_core.data.places import Places
from clipgen_core.data.prefetch import pool_size
from clipgen_core.data.referenced import take_images
from clipgen_core.data.rejected import Rejected
from clipgen_core.data.tables import open_table, upsert, vector_array
from clipgen_core.data.transfer import Moving, Transfer
from clipgen_core.data.upkeep import update_indexes
from clipgen_core.errors import ClipgenError
from clipgen_core.filesystem import exists
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.progress import track
from clipgen_core.schema import LOCAL, digest_of, embeddings_schema
from clipgen_core.settings.embeddings import Config
from clipgen_core.storage import Storage, portable
from clipgen_core.tracking import Tracker

__all__ = ["Config", "Imported", "Result", "import_from", "run"]

SAMPLED, ALIKE = 16, 0.9  # images that are embedded again, and the cosine that half of them need
LONGEST = 50  # the long side in short sides: a preprocessing resizes the short side first


@dataclass(frozen=True, kw_only=True)
class Result:
    """The embeddings table: `embedded` rows are new, `total` rows there are in all."""

    table: str
    version: int
    digest: str
    clip: str
    clip_key: str
    dim: int
    embedded: int
    total: int
    images_per_second: float


def run(
    config: Config, *, images: str, clip: str, out: Storage, tracker: Tracker, folder: str | None = None
) -> Result:
    """Embed the images that have no embedding yet, committing block by block.

    Args:
        config: Batch and block sizes, and where the work runs.
        images: The images table.
        clip: The CLIP, as ClipEncoder takes it.
        out: The root that gets the embeddings table.
        tracker: Gets the counts and the speed.
        folder: One top-level folder; all if None. The table becomes the current one when it is complete: an
            earlier one, of another CLIP, stays the current one until then.

    Returns:
        The table and its counts.

    Raises:
        ClipgenError: The CLIP or the images table is not available.
    """
    encoder, source = ClipEncoder(clip), open_table(images)
    clip = encoder.reference
    tracker.params({"config": config.model_dump(), "clip": clip})
    tracker.table(images, source.version)
    url = out.embeddings(encoder.key)
    filling = Filling(images, source.version, url, config.batch_size, config.block_size, out=out)
    here = config.compute.where == "local"
    make = functools.partial(Embedder, clip, portable(clip, out.root), encoder if here else None)
    embedded, speed = fill(filling, make, config.compute, "embeddings", folder)
    update_indexes(url, config.index_from)
    _follow(url, portable(clip, out.root))
    table = open_table(url)
    counts = {"embeddings": table.count_rows(), "embedded": embedded, "dimension": encoder.dim}
    tracker.metrics(counts | {"images_per_second": speed}, step=0)
    digest = digest_of([encoder.key, table.version])
    if not exists(out.path("current", "embeddings.json")) or not lacking(images, url):
        out.publish_current("embeddings", url, digest)
    return Result(
        table=url,
        version=table.version,
        digest=digest,
        clip=clip,
        clip_key=encoder.key,
        dim=encoder.dim,
        embedded=embedded,
        total=table.count_rows(),
        images_per_second=speed,
    )


def _follow(url: str, clip: str) -> None:
    """Let a table name its CLIP where it is now, if the folder that it names is gone."""
    named = EmbeddingTable(url)
    if named.clip.startswith(LOCAL) and not exists(named.clip.removeprefix(LOCAL)):
        named.table.update_schema_metadata({"clip": clip})


class Embedder:
    """A worker that embeds batches of images.

    Args:
        clip: The CLIP, as ClipEncoder takes it.
        stored: The reference that the table keeps of it.
        encoder: That CLIP where it is loaded already.
    """

    def __init__(self, clip: str, stored: str, encoder: ClipEncoder | None = None) -> None:
        self.encoder = encoder or ClipEncoder(clip)
        self.schema = embeddings_schema(self.encoder.dim, stored, self.encoder.key)
        self.decoders = ThreadPoolExecutor(pool_size())
        self.transfer = Transfer(self.encoder.device)

    def prepare(self, batch: pa.Table) -> tuple[pa.Table, Moving]:
        """Decode: float32 [n, 3, h, w]."""
        stored = dict(zip(batch["id"].to_pylist(), batch["image"].to_pylist(), strict=True))
        made = dict(zip(stored, self.decoders.map(self._preprocessed, stored.values()), strict=True))
        if reasons := {key: str(image) for key, image in made.items() if isinstance(image, Rejected)}:
            raise Unusable(reasons)
        return batch.select(["id", "folder"]), self.transfer.begin(torch.stack(list(made.values())))

    def _preprocessed(self, data: bytes) -> Any:
        """An image as the CLIP takes it, or why it cannot be used."""
        try:
            return self.encoder.preprocess(not_longer_than(decode_stored(data), LONGEST))
        except Rejected as rejected:
            return rejected

    def rows(self, prepared: tuple[pa.Table, Moving]) -> pa.Table:
        batch, images = prepared[0], self.transfer.end(prepared[1])
        vectors = vector_array(np.asarray(self.encoder.encode_prepared(images)))
        return pa.Table.from_arrays([batch["id"], batch["folder"], vectors], schema=self.schema)


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import did: `added` of its `rows` were new to the table; `missing` were left out."""

    table: str
    rows: int
    added: int
    missing: int


def import_from(
    folder: str, *, clip: str, out: Storage, source: str | None = None, skip_missing: bool = False
) -> Imported:
    """Take over embeddings that another program computed, as clip-retrieval writes them.

    All of them are checked before one is written. Images that have an embedding keep it.

    Args:
        folder: Holds img_emb/img_emb_N.npy and metadata/metadata_N.parquet, local or an fsspec URL.
        clip: The CLIP that made them, as ClipEncoder takes it.
        out: The root, which has an images table.
        source: The folder that relative names of images are in.
        skip_missing: Whether rows without an image in the images table are left out, instead of refused.

    Returns:
        What was imported.

    Raises:
        ClipgenError: Files do not belong together; the embeddings are not of this CLIP, or not finite; or
            images are missing.
    """
    encoder, places, read = ClipEncoder(clip), Places(out, source), parts(folder)
    rows = _require_shapes(folder, read, encoder)
    missing = _require_rows(folder, read, places, encoder, skip_missing)
    stored = portable(encoder.reference, out.root)
    url, schema = out.embeddings(encoder.key), embeddings_schema(encoder.dim, stored, encoder.key)
    added = 0
    with track("import", rows, "rows") as meter:
        for part in read:
            for batch, vectors in part.rows():
                at, first = np.unique(_rows_of(places, batch), return_index=True)
                first, at = first[at >= 0], at[at >= 0]
                if len(at):
                    taken = places.table.take(at.tolist(), columns=["id", "folder"])
                    columns = [taken["id"], taken["folder"], vector_array(_unit(vectors[first]))]
                    added += upsert(url, pa.Table.from_arrays(columns, schema=schema), "id", overwrite=False)
                meter.advance(len(vectors))
    update_indexes(url)
    out.publish_current("embeddings", url, digest_of([encoder.key, open_table(url).version]))
    return Imported(table=url, rows=rows, added=added, missing=missing)


def _require_shapes(folder: str, read: Sequence[Part], encoder: ClipEncoder) -> int:
    """The number of rows, if all files belong together and to this CLIP."""
    said, rows = made_by(folder), 0
    if said and said.get("clip_key") != encoder.key:
        raise ClipgenError(
            f"the embeddings in {folder} are of the CLIP {said.get('clip')} ({said.get('clip_key')}), not of "
            f"{encoder.reference} ({encoder.key}): give the CLIP that made them"
        )
    for part in read:
        count, dim = part.shape
        if dim != encoder.dim:
            raise ClipgenError(
                f"{part.vectors} has {dim} numbers a row, and {encoder.reference} gives {encoder.dim}: give "
                "the CLIP that made it"
            )
        rows += count
    if said and said.get("rows") != rows:
        raise ClipgenError(
            f"{folder} has {rows} rows, and {said.get('rows')} were exported: add the other parts"
        )
    return rows


def _require_rows(
    folder: str, read: Sequence[Part], places: Places, encoder: ClipEncoder, skip_missing: bool
) -> int:
    """How many rows have no image, if that is allowed and the others are those of the CLIP."""
    missing = bad = 0
    names, sample = list[str](), dict[int, np.ndarray]()
    for part in read:
        for batch, vectors in part.rows():
            rows = _rows_of(places, batch)
            missing, bad = missing + int((rows < 0).sum()), bad + int((~_usable(vectors)).sum())
            names += [_name(batch, int(row)) for row in np.flatnonzero(rows < 0)[: 1 - len(names)]]
            known = np.flatnonzero((rows >= 0) & _usable(vectors))[:: max(len(rows) // SAMPLED, 1)]
            sample |= {int(rows[row]): vectors[row] for row in known[: max(SAMPLED - len(sample), 0)]}
    if bad:
        raise ClipgenError(f"{bad} rows of {folder} are zero or not finite: compute them again")
    if missing and not sample:
        raise ClipgenError(
            f"none of the {missing} rows of {folder} names an image of the images table (first: {names[0]}): "
            "read their images first, or say by --source which folder their names are in"
        )
    if missing and not skip_missing:
        raise ClipgenError(
            f"{missing} rows of {folder} name no image of the images table, or several (first: {names[0]}): "
            "read their images first, say by --source which folder their names are in, or leave them out by "
            "--skip-missing"
        )
    _require_alike(folder, places, sample, encoder)
    return missing


def _require_alike(folder: str, places: Places, sample: dict[int, np.ndarray], encoder: ClipEncoder) -> None:
    """Refuse embeddings that the CLIP would not give: some images are embedded again."""
    if not sample:
        raise ClipgenError(f"{folder} holds no rows: name another folder")
    data = take_images(places.table, list(sample)).required(places.table)["image"].to_pylist()
    again = encoder.encode_images([not_longer_than(decode_stored(one), LONGEST) for one in data])
    cosine = float(np.median((_unit(np.stack([*sample.values()])) * again).sum(axis=1)))
    if cosine < ALIKE:
        raise ClipgenError(
            f"the embeddings in {folder} are not those of {encoder.reference}: {len(sample)} images were "
            f"embedded again, with a cosine of {cosine:.2f} to them: give the CLIP that made them"
        )


def _rows_of(places: Places, batch: pa.RecordBatch) -> np.ndarray:
    """The rows of the images table, -1 where there is none."""
    rows = np.full(batch.num_rows, -1)
    for name, find in (("id", places.of_ids), ("image_path", places.of_names)):
        if name in batch.schema.names:
            rows = np.where(rows < 0, find(batch[name].cast(pa.string()).to_pylist()), rows)
    return rows


def _name(batch: pa.RecordBatch, row: int) -> str:
    column = "image_path" if "image_path" in batch.schema.names else "id"
    return str(batch[column][row])


def _usable(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=1)
    return np.isfinite(length) & (length > 0)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
