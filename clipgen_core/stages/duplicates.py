"""Find near-duplicates: for each image the other image whose embedding is nearest.

In:  an embeddings table
Out: {root}/duplicates/{clip_key}.lance: id, nearest, cosine; only new images are looked up
Run: `near_duplicates` in Dagster. `tokens.exclude_duplicates` leaves them out of training.
"""

import functools
from dataclasses import dataclass

import pyarrow as pa
from PIL import Image

from clipgen_core.data.duplicates import redundant_keys
from clipgen_core.data.embeddings import EmbeddingTable
from clipgen_core.data.fill import Filling, fill
from clipgen_core.data.images import shown_by_id
from clipgen_core.data.pixels import fit_square, grid
from clipgen_core.data.tables import open_table, vectors
from clipgen_core.data.upkeep import update_indexes
from clipgen_core.schema import DUPLICATES
from clipgen_core.settings.duplicates import Config
from clipgen_core.settings.embeddings import INDEX_FROM
from clipgen_core.storage import Storage
from clipgen_core.tracking import Tracker

__all__ = ["Config", "Result", "run"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """The table of near-duplicates.

    looked_up: new rows; pairs: rows with at least the threshold's cosine; redundant: images that
    `tokens.exclude_duplicates` would leave out.
    """

    table: str
    looked_up: int
    pairs: int
    redundant: int


def run(config: Config, *, embeddings: str, out: Storage, tracker: Tracker) -> Result:
    """Look up the nearest other image of each image that has not been looked up yet.

    A search compares each row outside the vector index, so these are put into it first if they are many.

    Args:
        config: The threshold, block sizes, and where the work runs.
        embeddings: The embeddings table.
        out: The root that gets the table of near-duplicates.
        tracker: Gets the counts.

    Returns:
        The table and its counts.
    """
    tracker.params({"config": config.model_dump()})
    update_indexes(embeddings, INDEX_FROM, most=INDEX_FROM)
    source = EmbeddingTable(embeddings)
    tracker.table(embeddings, source.version)
    url = out.duplicates(source.clip_key)
    filling = Filling(
        embeddings,
        source.version,
        url,
        config.batch_size,
        config.block_size,
        columns=("id", "folder", "vector"),
    )
    make = functools.partial(Neighbours, embeddings, source.version)
    looked_up, speed = fill(filling, make, config.compute, "near-duplicates")
    pairs = open_table(url).count_rows(f"cosine >= {config.threshold}")
    redundant = len(redundant_keys(url, config.threshold, source))
    counts = {"looked_up": looked_up, "near_duplicate_pairs": pairs, "redundant": redundant}
    tracker.metrics(counts | {"images_per_second": speed}, step=0)
    return Result(table=url, looked_up=looked_up, pairs=pairs, redundant=redundant)


class Neighbours:
    """A worker that looks up the nearest other images of a batch.

    Args:
        embeddings: The embeddings table.
        version: Of the table.
    """

    schema = DUPLICATES

    def __init__(self, embeddings: str, version: int) -> None:
        self.table = EmbeddingTable(embeddings, version)

    def prepare(self, batch: pa.Table) -> pa.Table:
        return batch

    def rows(self, batch: pa.Table) -> pa.Table:
        pairs = self.table.nearest_others(batch["id"].to_pylist(), vectors(batch))
        return pa.table(
            [batch["id"], batch["folder"], [other for other, _ in pairs], [cosine for _, cosine in pairs]],
            schema=self.schema,
        )


def preview(url: str, images: str, threshold: float, most: int = 12, size: int = 64) -> Image.Image | None:
    """Pairs of near-duplicates, one image above the other.

    Args:
        url: The table of near-duplicates.
        images: The images table.
        threshold: The lowest cosine.
        most: How many pairs at the most.
        size: Of each image, in pixels a side.

    Returns:
        The grid; None if there are no near-duplicates.
    """
    first = open_table(url).to_table(
        columns=["id", "nearest"], filter=f"cosine >= {threshold} AND id < nearest", limit=most
    )
    ids = first["id"].to_pylist() + first["nearest"].to_pylist()
    if not ids:
        return None
    there = shown_by_id(open_table(images), ids)
    shown = [fit_square(there[one], size) for one in ids if one in there]
    return grid(shown, columns=len(shown) // 2 or 1) if shown else None
