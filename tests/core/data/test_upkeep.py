from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clipgen_core.data import upkeep
from clipgen_core.data.tables import delete, nearest, open_table, upsert, vector_array, vectors
from clipgen_core.data.upkeep import compact, tables, tag, unindexed, update_indexes
from clipgen_core.errors import ClipgenError
from clipgen_core.schema import embeddings_schema
from clipgen_core.storage import Storage


def clustered(seed: int, count: int, dim: int = 64) -> np.ndarray:
    """Vectors around 50 centres, as embeddings of images do."""
    rng, centres = np.random.default_rng(seed), np.random.default_rng(0).normal(size=(50, dim))
    return (centres[rng.integers(50, size=count)] + rng.normal(size=(count, dim))).astype(np.float32)


def add(url: str, first: int, count: int, dim: int = 64) -> None:
    values = clustered(first, count, dim)
    schema = embeddings_schema(dim, "local-dir:x", "tiny")
    ids = pa.array([f"{first + i:064x}" for i in range(count)])
    rows = pa.Table.from_arrays([ids, pa.array(["a"] * count), vector_array(values)], schema=schema)
    upsert(url, rows, "id", overwrite=True)


@pytest.mark.slow
def test_the_index_comes_with_size_takes_new_rows_in_and_finds_what_exact_search_finds(
    tmp_path: Path,
) -> None:
    url = str(tmp_path / "e.lance")
    add(url, 0, 900)
    update_indexes(url, rows=1000)
    assert not open_table(url).describe_indices()
    add(url, 900, 300)
    update_indexes(url, rows=1000)
    assert {index.name for index in open_table(url).describe_indices()} == {"vector_idx", "folder_idx"}
    add(url, 1200, 30)
    update_indexes(url, rows=1000)
    assert unindexed(open_table(url)) == 30
    add(url, 1230, 100)
    update_indexes(url, rows=1000)
    assert unindexed(open_table(url)) == 0
    table = open_table(url)
    stored = vectors(table.to_table())
    stored = stored / np.linalg.norm(stored, axis=1, keepdims=True)
    ids = np.array(table.to_table()["id"].to_pylist())
    queries = clustered(5, 20)
    hits = [
        len(set(nearest(table, q, 10)["id"].to_pylist()) & set(ids[np.argsort(-(stored @ q))[:10]]))
        for q in queries
    ]
    assert np.mean(hits) >= 9.5


def test_the_index_is_trained_again_when_the_table_has_doubled(tmp_path: Path) -> None:
    url = str(tmp_path / "e.lance")

    def grow(first: int, count: int) -> tuple[int, str]:
        """Segments of the index, and how many rows it was trained at."""
        add(url, first, count, dim=16)
        update_indexes(url, rows=1000)
        table = open_table(url)
        return table.stats.index_stats("vector_idx")["num_indices"], table.metadata["vector_index_rows"]

    assert grow(0, 1000) == (1, "1000")
    assert grow(1000, 300) == (2, "1000")
    compact(url, timedelta(0))
    assert grow(1300, 300) == (3, "1000")
    assert grow(1600, 400) == (1, "2000")
    assert unindexed(open_table(url)) == 0
    assert grow(2000, 300) == (2, "2000")
    open_table(url).update_metadata({"vector_index_rows": None})  # as an earlier version left it
    assert grow(2300, 1) == (1, "2301")


def test_old_versions_go_but_what_a_model_was_trained_on_stays(tmp_path: Path) -> None:
    url = str(tmp_path / "e.lance")
    for i in range(5):
        add(url, 10 * i, 10)
    tag(url, 3, "transformer-x")
    tag(url, 3, "transformer-x")
    with pytest.raises(ClipgenError, match="the tag transformer-x of .* names version 3, not 4"):
        tag(url, 4, "transformer-x")
    before = open_table(url, 3).count_rows()
    joined, removed = compact(url, timedelta(0))
    assert joined > 1 and removed > 0
    assert open_table(url).count_rows() == 50 and len(open_table(url).get_fragments()) == 1
    assert open_table(url, 3).count_rows() == before
    with pytest.raises((ClipgenError, ValueError, OSError)):
        open_table(url, 2).to_table()
    assert compact(str(tmp_path / "none.lance"), timedelta(0)) == (0, 0)


def test_a_later_compaction_writes_what_is_new_and_leaves_large_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "e.lance")
    for i in range(40):
        add(url, 10 * i, 10)
    assert upkeep.bytes_per_row(open_table(url)) > 64 * 4
    monkeypatch.setattr(upkeep, "FILE_BYTES", 100)
    monkeypatch.setattr(upkeep, "bytes_per_row", lambda table: 1.0)  # files of few rows are mostly headers

    def files() -> list[str]:
        return [fragment.data_files()[0].path for fragment in open_table(url).get_fragments()]

    compact(url, timedelta(0))
    first = files()
    assert 3 <= len(first) <= 5
    for i in range(40, 43):
        add(url, 10 * i, 10)
    compact(url, timedelta(0))
    assert files()[: len(first) - 1] == first[:-1] and len(files()) <= len(first) + 1
    delete(url, f"id < '{25:064}'")  # a quarter of a file
    compact(url, timedelta(0))
    assert files()[0] != first[0]
    left = open_table(url).to_table()
    assert sorted(left["id"].to_pylist()) == [f"{i:064x}" for i in range(0x25, 430)]
    expected = np.concatenate([clustered(10 * i, 10) for i in range(43)])[0x25:]
    assert np.allclose(vectors(left)[np.argsort(left["id"].to_pylist())], expected)


def test_processes_may_tag_at_once(tmp_path: Path) -> None:
    url = str(tmp_path / "e.lance")
    add(url, 0, 10)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: tag(url, 1, "transformer-x"), range(40)))
    assert open_table(url).tags.list()["transformer-x"]["version"] == 1


def test_every_table_of_a_root_is_kept(pipeline: Storage) -> None:
    names = {Path(url).name for url in tables(pipeline)}
    assert {"images.lance", "rejects.lance", "files.lance", "copies.lance"} < names
    assert len(names) == 7  # and missing.lance, and one of embeddings, one of codes
