"""Find near-duplicates: for each picture the other one whose embedding is nearest.

In:  an embeddings table
Out: {root}/duplicates/{clip_key}.lance: id, nearest, cosine; only new pictures are looked up
Run: `near_duplicates` in Dagster. `tokens.exclude_duplicates` leaves them out of training.
"""

import functools
from dataclasses import dataclass

import pyarrow as pa
from PIL import Image

from clipgen_core.data.duplicates import redundant_keys
from clipgen_core.data.fill import Filling, fill
from clipgen_core.data.pixels import decode_stored, fit_square, grid
from clipgen_core.data.tables import one_of, open_table, searching, vectors
from clipgen_core.schema import DUPLICATES
from clipgen_core.settings.duplicates import Config
from clipgen_core.storage import Storage
from clipgen_core.tracking import Tracker

__all__ = ["Config", "Result", "run"]


@dataclass(frozen=True, kw_only=True)
class Result:
    table: str
    looked_up: int
    pairs: int  # with at least the threshold's cosine
    redundant: int  # pictures that would be left out


def run(config: Config, *, embeddings: str, out: Storage, tracker: Tracker) -> Result:
    """Look up the pictures that have not been yet."""
    tracker.params({"config": config.model_dump()})
    source = open_table(embeddings)
    url = out.duplicates(source.schema.metadata[b"clip_key"].decode())
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
    redundant = len(redundant_keys(url, config.threshold))
    counts = {"looked_up": looked_up, "near_duplicate_pairs": pairs, "redundant": redundant}
    tracker.metrics(counts | {"pictures_per_second": speed}, step=0)
    return Result(table=url, looked_up=looked_up, pairs=pairs, redundant=redundant)


class Neighbours:
    """Looks up the nearest other picture, many at once."""

    schema = DUPLICATES

    def __init__(self, embeddings: str, version: int) -> None:
        self.table = open_table(embeddings, version)

    def prepare(self, batch: pa.Table) -> pa.Table:
        return batch

    def rows(self, batch: pa.Table) -> pa.Table:
        ids = batch["id"].to_pylist()
        query = {"column": "vector", "q": vectors(batch), "k": 2, **searching(self.table)}
        found = self.table.to_table(columns=["id", "_distance"], nearest=query)
        nearest: dict[int, tuple[str, float]] = {}
        columns = (found[name].to_pylist() for name in ("query_index", "id", "_distance"))
        for at, other, distance in zip(*columns, strict=True):
            if other != ids[at] and (at not in nearest or 1 - distance > nearest[at][1]):
                nearest[at] = (other, 1 - distance)
        pairs = [nearest.get(at, (one, 0.0)) for at, one in enumerate(ids)]  # itself where it is alone
        return pa.table(
            [batch["id"], batch["folder"], [other for other, _ in pairs], [cosine for _, cosine in pairs]],
            schema=self.schema,
        )


def preview(url: str, images: str, threshold: float, most: int = 12, size: int = 64) -> Image.Image | None:
    """Near-duplicates one above the other; None where there are none."""
    first = open_table(url).to_table(
        columns=["id", "nearest"], filter=f"cosine >= {threshold} AND id < nearest", limit=most
    )
    ids = first["id"].to_pylist() + first["nearest"].to_pylist()
    if not ids:
        return None
    rows = open_table(images).to_table(columns=["id", "image"], filter=one_of("id", ids))
    data = dict(zip(rows["id"].to_pylist(), rows["image"].to_pylist(), strict=True))
    shown = [one for one in ids if one in data]
    return grid([fit_square(decode_stored(data[one]), size) for one in shown], columns=len(shown) // 2 or 1)
