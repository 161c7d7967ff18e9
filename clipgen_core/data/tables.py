"""Lance tables: open, upsert, read in batches, search. Knows columns only by name."""

from collections.abc import Iterator, Sequence
from typing import Any

import lance
import numpy as np
import pyarrow as pa

from clipgen_core import storage
from clipgen_core.errors import ClipgenError


def open_table(url: str, version: int | None = None) -> lance.LanceDataset:
    """An existing table, at one version if given."""
    if not storage.exists(url):
        raise ClipgenError(f"there is no table at {url}: run the stage that writes it first")
    return lance.dataset(url, version=version)


def upsert(url: str, rows: pa.Table, key: str, *, overwrite: bool) -> int:
    """Insert rows whose `key` is new, in one commit; with `overwrite` replace the others.

    Returns:
        How many rows were inserted. Nothing is written where there is nothing to insert.
    """
    if rows.num_rows == 0 and storage.exists(url):
        return 0
    if not storage.exists(url):
        lance.write_dataset(rows, url)
        return rows.num_rows
    merge = lance.dataset(url).merge_insert(key).when_not_matched_insert_all()
    if overwrite:
        merge = merge.when_matched_update_all()
    return int(merge.execute(rows)["num_inserted_rows"])


def column(url: str, name: str) -> list[Any]:
    """One whole column; an empty list when the table does not exist."""
    if not storage.exists(url):
        return []
    return lance.dataset(url).to_table(columns=[name])[name].to_pylist()


def batches(
    table: lance.LanceDataset, columns: list[str], size: int, skip: set[str] | None = None
) -> Iterator[pa.Table]:
    """Rows in batches of `size`, without those whose id is in `skip`."""
    ids = table.to_table(columns=["id"])["id"].to_pylist()
    wanted = [i for i, image_id in enumerate(ids) if not skip or image_id not in skip]
    for start in range(0, len(wanted), size):
        yield table.take(wanted[start : start + size], columns=columns)


def vectors(table: pa.Table, name: str = "vector") -> np.ndarray:
    """A fixed-size-list column as float32 [n, d]."""
    array = table[name].combine_chunks()
    flat = array.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, dtype=np.float32).reshape(len(array), -1)


def vector_array(values: np.ndarray) -> pa.FixedSizeListArray:
    """[n, d] as an Arrow fixed-size list of float32."""
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def nearest(
    table: lance.LanceDataset, query: np.ndarray, k: int, columns: Sequence[str] = ("id",)
) -> pa.Table:
    """The `k` rows whose `vector` has the highest cosine with `query` [d], best first.

    Adds the column `cosine`.
    """
    found = table.to_table(
        columns=[*columns, "vector", "_distance"],
        nearest={"column": "vector", "q": query.astype(np.float32), "k": k, "metric": "cosine"},
    )
    cosine = pa.array(1.0 - found["_distance"].to_numpy())
    return found.drop_columns(["_distance"]).append_column("cosine", cosine)
