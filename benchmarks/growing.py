"""What a table of many rows costs: committing some more to it, and looking up near-duplicates in it."""

import hashlib
import statistics
import tempfile

import numpy as np
import pyarrow as pa

from benchmarks.timing import Row, seconds
from clipgen_core.data.embeddings import EmbeddingTable
from clipgen_core.data.tables import upsert, vector_array, vectors
from clipgen_core.data.upkeep import update_indexes
from clipgen_core.schema import embeddings_schema

SMALL, LARGE = 250_000, 1_000_000
DIM, CENTRES, AT_ONCE, BLOCK = 64, 2000, 50_000, 4096
COMMITS, LOOKUPS, BATCH = 5, 2048, 256
SCHEMA = embeddings_schema(DIM, "", "")


def growing(small: int = SMALL, large: int = LARGE) -> list[Row]:
    """Commits to, and lookups in, a table of clustered vectors and one that is four times as large.

    Args:
        small: Rows of the one.
        large: Rows of the other.

    Returns:
        The rows.
    """
    (merge, lookup), (merge_large, lookup_large) = _measured(small), _measured(large)
    sizes = f"{large:,} rows against {small:,}"
    return [
        Row(
            "growing",
            f"committing {BLOCK} rows, {sizes}",
            merge_large / merge,
            "x",
            f"< {large / small:g}",
            f"{1e3 * merge_large:.0f} ms against {1e3 * merge:.0f} ms",
        ),
        Row(
            "growing",
            f"near-duplicate of one row, {sizes}",
            lookup_large / lookup,
            "x",
            "near 1",
            f"{1e3 * lookup_large:.2f} ms against {1e3 * lookup:.2f} ms",
        ),
    ]


def _measured(count: int) -> tuple[float, float]:
    """Seconds of one commit, and of one lookup."""
    with tempfile.TemporaryDirectory() as scratch:
        url = f"{scratch}/embeddings.lance"
        for first in range(0, count, AT_ONCE):
            upsert(url, rows(first, min(AT_ONCE, count - first)), "id", overwrite=False)
        blocks = [rows(count + number * BLOCK, BLOCK) for number in range(COMMITS)]
        commits = [seconds(lambda new=new: upsert(url, new, "id", overwrite=True)) for new in blocks]  # type: ignore[misc]
        update_indexes(url, 1000, most=0)
        table, sought = EmbeddingTable(url), rows(0, min(AT_ONCE, count))
        ids, queries = sought["id"].to_pylist(), vectors(sought)
        lookups = [
            seconds(lambda at=at: table.nearest_others(ids[at : at + BATCH], queries[at : at + BATCH]))  # type: ignore[misc]
            for at in range(0, LOOKUPS, BATCH)
        ]
    return statistics.median(commits), statistics.median(lookups) / BATCH


def rows(first: int, count: int) -> pa.Table:
    """Rows of an embeddings table.

    Args:
        first: The number of the first one, which ids and vectors depend on.
        count: How many.

    Returns:
        The rows.
    """
    ids = pa.array([hashlib.sha256(str(first + i).encode()).hexdigest() for i in range(count)])
    columns = [ids, pa.array(["a"] * count), vector_array(clustered(first, count))]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def clustered(first: int, count: int) -> np.ndarray:
    """Unit vectors [count, DIM] around CENTRES centres, each half noise.

    Args:
        first: The number of the first one, which is the seed.
        count: How many.

    Returns:
        float32.
    """
    centres = np.random.default_rng(0).standard_normal((CENTRES, DIM), np.float32)
    rng = np.random.default_rng(first + 1)
    values = centres[rng.integers(CENTRES, size=count)] + rng.standard_normal((count, DIM), np.float32)
    made: np.ndarray = values / np.linalg.norm(values, axis=1, keepdims=True)
    return made
