"""Embed pictures: one L2-normalised CLIP image embedding for each picture of the images table.

In:  the images table; a CLIP by reference
Out: {root}/embeddings/{clip_key}.lance; pictures that are in it already are not embedded again
Run: `clip_embeddings` in Dagster, or `clipgen embed FOLDER`.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pydantic import Field

from clipgen_core.data.pictures import decode_stored
from clipgen_core.data.tables import batches, column, open_table, upsert, vector_array
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.progress import track
from clipgen_core.schema import Frozen, digest_of, embeddings_schema
from clipgen_core.storage import Storage
from clipgen_core.tracking import Tracker


class Config(Frozen):
    batch_size: int = Field(default=256, gt=0)
    batches_per_commit: int = Field(default=8, gt=0)


@dataclass(frozen=True, kw_only=True)
class Result:
    table: str
    version: int
    digest: str
    clip: str
    clip_key: str
    dim: int
    embedded: int
    total: int
    pictures_per_second: float


def run(config: Config, *, images: str, clip: str, out: Storage, tracker: Tracker) -> Result:
    """Embed what is not embedded yet, committing every few batches."""
    encoder, source = ClipEncoder(clip), open_table(images)
    url = out.embeddings(encoder.key)
    done = set(column(url, "id"))
    missing = source.count_rows() - len(done)
    waiting: list[pa.Table] = []
    with track("embeddings", max(missing, 0), "pictures") as meter:
        for batch in batches(source, ["id", "folder", "image"], config.batch_size, skip=done):
            waiting.append(_embed(batch, encoder))
            if len(waiting) == config.batches_per_commit:
                upsert(url, pa.concat_tables(waiting), "id", overwrite=True)
                waiting.clear()
            meter.advance(batch.num_rows)
        if waiting:
            upsert(url, pa.concat_tables(waiting), "id", overwrite=True)
        speed, embedded = meter.rate, meter.done
    table = open_table(url)
    tracker.metrics({"embedded": embedded, "pictures_per_second": speed}, step=0)
    out.publish_current("embeddings", url, digest_of([encoder.key, table.version]))
    return Result(
        table=url,
        version=table.version,
        digest=digest_of([encoder.key, table.version]),
        clip=clip,
        clip_key=encoder.key,
        dim=encoder.dim,
        embedded=embedded,
        total=table.count_rows(),
        pictures_per_second=speed,
    )


def _embed(batch: pa.Table, encoder: ClipEncoder) -> pa.Table:
    with ThreadPoolExecutor(4) as decoders:
        pictures = list(decoders.map(decode_stored, batch["image"].to_pylist()))
    vectors = vector_array(np.asarray(encoder.encode_images(pictures)))
    columns = [batch["id"], batch["folder"], vectors]
    schema = embeddings_schema(encoder.dim, encoder.reference, encoder.key)
    return pa.Table.from_arrays(columns, schema=schema)
