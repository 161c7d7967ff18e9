"""Embed images: one L2-normalised CLIP image embedding for each image of the images table.

In:  the images table; a CLIP by reference
Out: {root}/embeddings/{clip_key}.lance; images that are in it already are not embedded again, and
     another CLIP gets another table
Run: `clip_embeddings` in Dagster, or `clipgen embed FOLDER`.
"""

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from clipgen_core.data.decode import decode_stored
from clipgen_core.data.fill import Filling, Unusable, fill
from clipgen_core.data.pixels import not_longer_than
from clipgen_core.data.prefetch import pool_size
from clipgen_core.data.rejected import Rejected
from clipgen_core.data.tables import open_table, vector_array
from clipgen_core.data.transfer import Moving, Transfer
from clipgen_core.data.upkeep import update_indexes
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.schema import digest_of, embeddings_schema
from clipgen_core.settings.embeddings import Config
from clipgen_core.storage import Storage, portable
from clipgen_core.tracking import Tracker

__all__ = ["Config", "Result", "run"]

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
        folder: One top-level folder; all if None.

    Returns:
        The table and its counts.

    Raises:
        ClipgenError: The CLIP or the images table is not available.
    """
    encoder, source = ClipEncoder(clip), open_table(images)
    clip = encoder.reference
    tracker.params({"config": config.model_dump(), "clip": clip})
    url = out.embeddings(encoder.key)
    filling = Filling(images, source.version, url, config.batch_size, config.block_size, rejects=out.rejects)
    here = config.compute.where == "local"
    make = functools.partial(Embedder, clip, portable(clip, out.root), encoder if here else None)
    embedded, speed = fill(filling, make, config.compute, "embeddings", folder)
    update_indexes(url, config.index_from)
    table = open_table(url)
    counts = {"embeddings": table.count_rows(), "embedded": embedded, "dimension": encoder.dim}
    tracker.metrics(counts | {"images_per_second": speed}, step=0)
    digest = digest_of([encoder.key, table.version])
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
