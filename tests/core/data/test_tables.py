import multiprocessing
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clipgen_core.data.tables import column, nearest, open_table, upsert, vector_array, vectors
from clipgen_core.errors import ClipgenError


def rows(ids: list[str], values: np.ndarray) -> pa.Table:
    return pa.table({"id": ids, "vector": vector_array(values)})


def test_upsert_keeps_one_row_a_key(tmp_path: Path) -> None:
    url = str(tmp_path / "t.lance")
    assert upsert(url, rows(["a", "b"], np.eye(2)), "id", overwrite=False) == 2
    assert upsert(url, rows(["b", "c"], np.ones((2, 2))), "id", overwrite=False) == 1
    assert sorted(column(url, "id")) == ["a", "b", "c"]
    kept = open_table(url).to_table(filter="id = 'b'")
    assert vectors(kept).tolist() == [[0.0, 1.0]]


def test_upsert_with_overwrite_replaces(tmp_path: Path) -> None:
    url = str(tmp_path / "t.lance")
    upsert(url, rows(["a"], np.zeros((1, 2))), "id", overwrite=True)
    assert upsert(url, rows(["a"], np.ones((1, 2))), "id", overwrite=True) == 0
    assert vectors(open_table(url).to_table()).tolist() == [[1.0, 1.0]]


def test_upserting_nothing_makes_no_version(tmp_path: Path) -> None:
    url = str(tmp_path / "t.lance")
    upsert(url, rows(["a"], np.zeros((1, 2))), "id", overwrite=False)
    before = open_table(url).version
    upsert(url, rows([], np.zeros((0, 2))), "id", overwrite=False)
    assert open_table(url).version == before


def test_nearest_equals_exact_search(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    stored = rng.normal(size=(200, 8)).astype(np.float32)
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    url = str(tmp_path / "t.lance")
    upsert(url, rows([str(i) for i in range(200)], stored), "id", overwrite=False)
    query = stored[17] + 0.1
    found = nearest(open_table(url), query, 5)
    cosine = stored @ query / np.linalg.norm(query)
    assert found["id"].to_pylist() == [str(i) for i in np.argsort(-cosine)[:5]]
    assert np.allclose(found["cosine"].to_numpy(), np.sort(cosine)[::-1][:5], atol=1e-5)


def test_a_missing_table_is_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(ClipgenError, match="there is no table at .*: check the path"):
        open_table(str(tmp_path / "none.lance"))
    with pytest.raises(
        ClipgenError, match="there is no table at .*: materialise clip_embeddings first in Dagster, or run"
    ):
        open_table(str(tmp_path / "embeddings" / "x.lance"))


def create_and_insert(folder: str, barrier: Barrier, number: int, rounds: int) -> None:
    for turn in range(rounds):
        barrier.wait()
        time.sleep(0.002 * number)  # so that one inserts while another still creates
        upsert(f"{folder}/{turn}.lance", rows([f"{number}"], np.ones((1, 2))), "id", overwrite=False)


def test_processes_that_create_a_table_at_once_lose_no_row(tmp_path: Path) -> None:
    writers, rounds = 4, 20
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(writers)
    processes = [
        spawn.Process(target=create_and_insert, args=(str(tmp_path), barrier, number, rounds))
        for number in range(writers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    counts = [open_table(f"{tmp_path}/{turn}.lance").count_rows() for turn in range(rounds)]
    assert counts == [writers] * rounds
