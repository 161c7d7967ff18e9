"""Lance tables: open, upsert, read in blocks, search. Knows columns only by name.

Tables are keyed: a column marked as the key in its schema (schema.KEY) holds no value twice, also when
several processes write at once; Lance then sees that two commits insert the same key, and one of them
tries again.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from clipgen_core.data.keys import keys_of_ids
from clipgen_core.errors import ClipgenError
from clipgen_core.filesystem import retried
from clipgen_core.storage import remedy
from clipgen_core.stores import require_answer, s3_endpoint

if TYPE_CHECKING:  # loaded when a table is opened: trainings from token shards run without Lance
    import lance

R = TypeVar("R")
CONFLICT_RETRIES = 100
IDS_AT_ONCE = 65_536
ROWS_A_PARTITION = 4096  # of a vector index
WRITTEN_BY = {  # part of a table's path: the stage that writes it
    "images.lance": "images",
    "rejects.lance": "images",
    "files.lance": "images",
    "embeddings": "embeddings",
    "codes": "tokens",
    "duplicates": "near_duplicates",
}


def options(url: str) -> dict[str, str] | None:
    """What Lance must be told of an S3-compatible store; credentials it takes from the environment."""
    endpoint = s3_endpoint()
    if not url.startswith("s3://") or not endpoint:
        return None
    require_answer(url)
    return {"aws_endpoint": endpoint, "allow_http": "true", "client_max_retries": "10"}


def persistently(url: str, call: Callable[[], R]) -> R:
    """Call Lance; on a remote store a call that fails is made again.

    Lance itself retries reads, but not the write that commits a version, since it cannot know whether that
    arrived. All our writes may be made twice.

    Args:
        url: The table that is called.
        call: The call; it must have the same effect if it is made twice.

    Returns:
        What the call returns.
    """
    return retried(call) if "://" in url else call()


def find_table(url: str, version: int | None = None) -> "lance.LanceDataset | None":
    """Open a table that may not exist.

    Args:
        url: A local path or an fsspec URL.
        version: The newest one if None.

    Returns:
        The table; None if there is none.
    """
    import lance

    try:
        return persistently(url, lambda: lance.dataset(url, version=version, storage_options=options(url)))
    except ValueError as error:
        if "not found" in str(error).lower():
            return None
        raise


def open_table(url: str, version: int | None = None) -> "lance.LanceDataset":
    """Open an existing table.

    Args:
        url: A local path or an fsspec URL.
        version: The newest one if None.

    Returns:
        The table.

    Raises:
        ClipgenError: There is none.
    """
    table = find_table(url, version)
    if table is None:
        stage = next((WRITTEN_BY[part] for part in reversed(url.split("/")) if part in WRITTEN_BY), None)
        way = remedy(stage, "first") if stage else "check the path"
        raise ClipgenError(f"there is no table at {url}: {way}")
    return table


def create_table(url: str, schema: pa.Schema) -> "lance.LanceDataset":
    """Open a table, and create it empty if it does not exist.

    Args:
        url: A local path or an fsspec URL.
        schema: Of a new table.

    Returns:
        The table.
    """
    import lance

    # `lance.write_dataset` tries a commit again that lost a race, and then overwrites the rows of the winner
    empty = lance.LanceOperation.Overwrite(schema, [])

    def find_or_create() -> "lance.LanceDataset":
        table = find_table(url)
        if table is not None:
            return table
        try:
            return lance.LanceDataset.commit(url, empty, max_retries=0, storage_options=options(url))
        except OSError:
            table = find_table(url)  # another process was first
            if table is None:
                raise
            return table

    return persistently(url, find_or_create)


def upsert(url: str, rows: pa.Table, key: str, *, overwrite: bool) -> int:
    """Insert rows whose key is new, in one commit.

    Args:
        url: The table, which is created if it does not exist.
        rows: Rows to insert.
        key: The column that identifies a row.
        overwrite: Replace rows whose key exists already; they stay as they are otherwise.

    Returns:
        How many rows were inserted. Nothing is written where there is nothing to insert.
    """
    create_table(url, rows.schema)

    def merge() -> int:
        builder = open_table(url).merge_insert(key).when_not_matched_insert_all()
        if overwrite:
            builder = builder.when_matched_update_all()
        return int(builder.conflict_retries(CONFLICT_RETRIES).execute(rows)["num_inserted_rows"])

    return persistently(url, merge) if rows.num_rows else 0


def delete(url: str, where: str) -> None:
    """Delete rows; nothing is written if none match.

    Args:
        url: The table.
        where: An SQL condition.
    """
    table = find_table(url)
    if table is not None and table.count_rows(filter=where):
        persistently(url, lambda: open_table(url).delete(where))


def update(url: str, values: dict[str, str], where: str) -> None:
    """Set columns in the rows that match a condition.

    Args:
        url: The table.
        values: SQL literals by column.
        where: An SQL condition.
    """
    persistently(url, lambda: open_table(url).update(values, where=where))


def scan(
    table: "lance.LanceDataset", columns: list[str], where: str | None = None, size: int = IDS_AT_ONCE
) -> Iterator[pa.RecordBatch]:
    """Read rows in the table's order, a bounded number at once.

    Args:
        table: The table.
        columns: The columns to read.
        where: An SQL condition; all rows if None.
        size: Rows of a batch at the most.

    Yields:
        Batches of rows.
    """
    scanner = table.scanner(columns=columns, filter=where, batch_size=size, batch_readahead=2)
    yield from scanner.to_batches()


def scan_keys(table: "lance.LanceDataset") -> Iterator[np.ndarray]:
    """The keys of the column `id`, in the table's order."""
    for batch in scan(table, ["id"]):
        yield keys_of_ids(batch["id"])


def quoted(text: str) -> str:
    """A text as a literal in a filter."""
    return "'" + text.replace("'", "''") + "'"


def one_of(column: str, values: Sequence[str]) -> str:
    """A filter: the column holds one of some values.

    Args:
        column: A column of strings.
        values: The values to look for.

    Returns:
        An SQL condition.
    """
    return f"{column} IN ({', '.join(map(quoted, values))})" if values else "false"


def count(table: "lance.LanceDataset", folder: str | None = None) -> int:
    """Count the rows of a table.

    Args:
        table: The table.
        folder: One top-level folder; all if None.

    Returns:
        The number of rows.
    """
    return int(table.count_rows(None if folder is None else f"folder = {quoted(folder)}"))


def column(url: str, name: str) -> list[Any]:
    """Read one whole column.

    Args:
        url: The table.
        name: The column.

    Returns:
        Its values; an empty list if the table does not exist.
    """
    table = find_table(url)
    return [] if table is None else table.to_table(columns=[name])[name].to_pylist()


def vectors(table: pa.Table | pa.RecordBatch, name: str = "vector") -> np.ndarray:
    """A column of vectors as an array.

    Args:
        table: Rows.
        name: A column of fixed-size lists.

    Returns:
        float32 [n, d].
    """
    array = table[name]
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    flat = array.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, dtype=np.float32).reshape(len(array), -1)


def vector_array(values: np.ndarray) -> pa.FixedSizeListArray:
    """[n, d] as an Arrow fixed-size list of float32."""
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def partitions(table: "lance.LanceDataset") -> int:
    """How many partitions the vector index of a table has."""
    return max(int(table.count_rows()) // ROWS_A_PARTITION, 1)


def searching(table: "lance.LanceDataset") -> dict[str, Any]:
    """How a search uses the vector index: a quarter of its partitions, then exact distances of the best.
    Without an index the search is exact."""
    return {"metric": "cosine", "nprobes": 16 + partitions(table) // 4, "refine_factor": 30}


def nearest(
    table: "lance.LanceDataset", query: np.ndarray, k: int, columns: Sequence[str] = ("id",)
) -> pa.Table:
    """The rows whose `vector` has the highest cosine with a query.

    Args:
        table: A table with the column `vector`.
        query: float32 [d].
        k: How many rows.
        columns: Further columns to read.

    Returns:
        The rows, the nearest first, with the columns `vector` and `cosine`.
    """
    found = table.to_table(
        columns=[*columns, "vector", "_distance"],
        nearest={"column": "vector", "q": query.astype(np.float32), "k": k, **searching(table)},
    )
    cosine = pa.array(1.0 - found["_distance"].to_numpy())
    return found.drop_columns(["_distance"]).append_column("cosine", cosine)
