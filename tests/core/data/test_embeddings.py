from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clipgen_core.data.embeddings import EmbeddingTable
from clipgen_core.data.tables import upsert, vector_array
from clipgen_core.errors import ClipgenError
from clipgen_core.schema import embeddings_schema

IDS = [f"{i:064x}" for i in range(6)]


def table(folder: Path, vectors: np.ndarray) -> EmbeddingTable:
    schema = embeddings_schema(vectors.shape[1], "hub:x/y", "x-y-123")
    columns = [pa.array(IDS[: len(vectors)]), pa.array(["a"] * len(vectors)), vector_array(vectors)]
    upsert(str(folder / "e.lance"), pa.Table.from_arrays(columns, schema=schema), "id", overwrite=False)
    return EmbeddingTable(str(folder / "e.lance"))


def test_a_table_knows_its_clip_its_width_and_its_nearest_rows(tmp_path: Path) -> None:
    angles = np.arange(6) ** 2 * 0.1
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    embeddings = table(tmp_path, vectors)
    assert (embeddings.clip, embeddings.clip_key, embeddings.dim) == ("hub:x/y", "x-y-123", 2)
    found = embeddings.nearest(vectors[2], 3)
    assert found.ids == [IDS[2], IDS[1], IDS[0]]
    assert np.allclose(found.cosine, [1, np.cos(0.3), np.cos(0.4)], atol=1e-5)
    assert np.allclose(found.vectors, vectors[[2, 1, 0]])
    others = embeddings.nearest_others(IDS, vectors)
    assert [one for one, _ in others] == [IDS[1], IDS[0], IDS[1], IDS[2], IDS[3], IDS[4]]


def test_the_only_image_has_no_other(tmp_path: Path) -> None:
    alone = np.ones((1, 1), np.float32)
    assert table(tmp_path, alone).nearest_others(IDS[:1], alone) == [(IDS[0], 0.0)]


def test_a_search_after_every_folder_was_forgotten_is_one_sentence(tmp_path: Path) -> None:
    made = table(tmp_path, np.eye(3, dtype=np.float32))
    made.table.delete("true")
    with pytest.raises(ClipgenError, match=r"e.lance has no embeddings: read a folder"):
        EmbeddingTable(made.url).nearest(np.eye(3, dtype=np.float32)[0], 2)


def test_a_table_without_a_clip_is_refused(tmp_path: Path) -> None:
    upsert(str(tmp_path / "t.lance"), pa.table({"id": IDS}), "id", overwrite=False)
    with pytest.raises(ClipgenError, match="does not say which CLIP it is of"):
        _ = EmbeddingTable(str(tmp_path / "t.lance")).clip
