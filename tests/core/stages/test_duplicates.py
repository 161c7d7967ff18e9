import hashlib
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipgen_core.data import embeddings, tables
from clipgen_core.data.duplicates import redundant_keys
from clipgen_core.data.embeddings import EmbeddingTable
from clipgen_core.data.keys import keys_of_ids
from clipgen_core.data.tables import open_table, upsert, vector_array
from clipgen_core.data.tokens import read_manifest
from clipgen_core.data.upkeep import unindexed
from clipgen_core.errors import ClipgenError
from clipgen_core.schema import embeddings_schema
from clipgen_core.stages import duplicates, tokens
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker

CONFIG = duplicates.Config(threshold=0.95)


def ids(count: int) -> list[str]:
    return [hashlib.sha256(str(i).encode()).hexdigest() for i in range(count)]


def embed(url: str, values: np.ndarray) -> None:
    values = values / np.linalg.norm(values, axis=1, keepdims=True)
    schema = embeddings_schema(values.shape[1], "local-dir:x", "tiny")
    columns = [ids(len(values)), ["a"] * len(values), vector_array(values)]
    upsert(
        url,
        pa.Table.from_arrays(list(map(pa.array, columns[:2])) + columns[2:], schema=schema),
        "id",
        overwrite=True,
    )


def find(url: str, storage: Storage) -> duplicates.Result:
    return duplicates.run(CONFIG, embeddings=url, out=storage, tracker=NullTracker())


def test_each_group_keeps_one_and_new_pictures_alone_are_looked_up(storage: Storage, tmp_path: Path) -> None:
    rng, url = np.random.default_rng(0), str(tmp_path / "e.lance")
    apart = rng.normal(size=(20, 32))
    near = apart + 0.01 * rng.normal(size=(20, 32))
    embed(url, np.concatenate([apart, near[:3]]))
    first = find(url, storage)
    assert (first.looked_up, first.pairs, first.redundant) == (23, 6, 3)
    embed(url, np.concatenate([apart, near[:3], near[:2], apart[10:11]]))
    second = find(url, storage)
    assert (second.looked_up, second.redundant) == (3, 6)
    keys = keys_of_ids(pa.array(ids(26))).tolist()
    groups = [{0, 20, 23}, {1, 21, 24}, {2, 22}, {10, 25}]
    kept = {min(group, key=lambda i: keys[i]) for group in groups}
    table = EmbeddingTable(url)
    dropped = redundant_keys(second.table, CONFIG.threshold, table)
    assert dropped == {keys[i] for group in groups for i in group} - {keys[i] for i in kept}
    among = np.array([key for i, key in enumerate(keys) if i not in kept])  # what a condition has left
    left = [sorted(group - kept, key=lambda i: keys[i]) for group in groups]
    assert redundant_keys(second.table, CONFIG.threshold, table, among) == {
        keys[i] for own in left for i in own[1:]
    }


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), threshold=st.sampled_from([0.9, 0.95, 0.98]))
def test_no_two_of_the_images_that_are_kept_are_alike(seed: int, threshold: float) -> None:
    """Of groups whose images are near some of their group and not the others: chains, pairs of pairs."""
    with tempfile.TemporaryDirectory() as folder:
        rng, url = np.random.default_rng(seed), f"{folder}/e.lance"
        steps = rng.normal(size=(12, 6, 16)) * rng.uniform(0.05, 0.4, size=(12, 1, 1))
        values = (rng.normal(size=(12, 1, 16)) + steps.cumsum(axis=1)).reshape(72, 16)
        embed(url, values)
        config = duplicates.Config(threshold=threshold)
        found = duplicates.run(config, embeddings=url, out=Storage(folder), tracker=NullTracker())
        left_out = redundant_keys(found.table, threshold, EmbeddingTable(url))
    keys = keys_of_ids(pa.array(ids(72))).tolist()
    units = values / np.linalg.norm(values, axis=1, keepdims=True)
    alike = units @ units.T >= threshold + 1e-5
    kept = np.array([key not in left_out for key in keys])
    assert (alike & kept & kept[:, None]).sum() == kept.sum()
    near = units @ units.T >= threshold - 1e-5
    assert all(near[i].sum() > 1 for i in np.flatnonzero(~kept))


def test_few_partitions_hold_the_near_duplicates(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "ROWS_A_PARTITION", 287)
    monkeypatch.setitem(embeddings.NEAR, "nprobes", 2)
    monkeypatch.setattr(duplicates, "INDEX_FROM", 400)
    rng, url = np.random.default_rng(0), str(tmp_path / "e.lance")
    apart = rng.normal(size=(3000, 32))
    near = apart[:400] + 0.03 * rng.normal(size=(400, 32))
    embed(url, np.concatenate([apart[:2000], near[:300]]))
    assert 290 <= find(url, storage).redundant <= 300  # where partitions lie is Lance's choice
    assert open_table(url).stats.index_stats("vector_idx")["indices"][0]["num_partitions"] == 8
    embed(url, np.concatenate([apart[:2000], near[:300], near[300:], apart[2000:]]))
    assert unindexed(open_table(url)) >= 1100
    second = find(url, storage)
    assert second.looked_up == 1100 and 385 <= second.redundant <= 400
    assert unindexed(open_table(url)) == 0


def test_one_picture_alone_has_no_duplicate(storage: Storage, tmp_path: Path) -> None:
    url = str(tmp_path / "e.lance")
    embed(url, np.ones((1, 8)))
    assert find(url, storage).pairs == 0


def test_training_can_leave_near_duplicates_out(pipeline: Storage, tmp_path: Path) -> None:
    out = Storage(str(tmp_path / "root"))
    table = pipeline.current("embeddings", "tests").path

    def shards(threshold: float | None) -> tuple[int, float | None]:
        made = tokens.run(
            tokens.Config(exclude_duplicates=threshold),
            images=pipeline.images,
            embeddings=table,
            vqgan=pipeline.current("vqgan", "tests").path,
            out=out,
            tracker=NullTracker(),
        )
        manifest = read_manifest(made.shards)
        return manifest.rows, manifest.exclude_duplicates

    with pytest.raises(ClipgenError, match="materialise near_duplicates first"):
        shards(0.95)
    found = find(table, out)
    assert 0 < found.redundant < 72
    assert shards(0.95) == (72 - found.redundant, 0.95)
    assert shards(None) == (72, None)
    sheet = duplicates.preview(found.table, pipeline.images, 0.95, most=3, size=16)
    assert sheet and sheet.size == (3 * 18 - 2, 2 * 18 - 2)
