import json
import shutil
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipgen_core.data.decode import decode
from clipgen_core.data.embeddings import EmbeddingTable
from clipgen_core.data.images import ImageTable
from clipgen_core.data.pixels import fit_square, to_tensor
from clipgen_core.data.tables import vectors
from clipgen_core.data.tokens import TokenShards, read_manifest
from clipgen_core.device import autocast
from clipgen_core.errors import ClipgenError
from clipgen_core.generation.load import load_vqgan
from clipgen_core.stages import tokens
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker


@pytest.fixture
def shards(pipeline: Storage, tmp_path: Path) -> str:
    copy = tmp_path / "tokens"
    shutil.copytree(pipeline.current("tokens", "tests").path, copy)
    return str(copy)


def test_every_view_has_the_vqgans_codes_and_the_pictures_embedding(shards: str, pipeline: Storage) -> None:
    manifest = read_manifest(shards)
    files = [f"{shards}/{part.file}" for part in (*manifest.train, *manifest.validation)]
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert len(rows) == manifest.rows == 2 * 72
    stored = lance.dataset(pipeline.images).to_table()
    images = dict(zip(stored["id"].to_pylist(), stored["image"].to_pylist(), strict=True))
    table = lance.dataset(pipeline.current("embeddings", "tests").path).to_table()
    embedded = dict(zip(table["id"].to_pylist(), vectors(table), strict=True))
    model = load_vqgan(pipeline.current("vqgan", "tests").path)
    first = [row for row in rows if row["view"] == 0]
    batch = to_tensor([fit_square(decode(images[row["id"]]).image, 32) for row in first])
    with autocast("cpu"):
        codes = model.encode(batch).flatten(1).numpy()
    agreement = np.mean(codes == np.array([row["codes"] for row in first]))
    assert agreement > 0.97
    assert all(np.allclose(embedded[row["id"]], row["embedding"]) for row in rows)
    assert sum(part.rows for part in manifest.validation) == 2 * len(ImageTable(pipeline.images).validation)


def test_shards_of_the_same_making_are_left_as_they_are(pipeline: Storage, tmp_path: Path) -> None:
    out = Storage(str(tmp_path / "root"))
    paths = {"embeddings": "embeddings", "vqgan": "vqgan"}
    inputs = {name: pipeline.current(stage, "tests").path for name, stage in paths.items()}

    def run(views: int) -> tuple[str, float]:
        config = tokens.Config(views=views)
        made = tokens.run(config, images=pipeline.images, **inputs, out=out, tracker=NullTracker())
        return made.digest, (Path(made.shards) / "manifest.json").stat().st_mtime

    first, again, other = run(1), run(1), run(2)
    assert first == again
    assert other[0] != first[0] and other[1] > first[1]


@pytest.mark.parametrize(
    "damaged", ["part-train-00000.parquet", "part-validation-00000.parquet", "manifest.json"]
)
def test_shards_that_are_damaged_are_written_again(damaged: str, pipeline: Storage, tmp_path: Path) -> None:
    out = Storage(str(tmp_path / "root"))
    inputs = {stage: pipeline.current(stage, "tests").path for stage in ("embeddings", "vqgan")}

    def run() -> tokens.Result:
        return tokens.run(tokens.Config(), images=pipeline.images, **inputs, out=out, tracker=NullTracker())

    first = run()
    file = Path(first.shards) / damaged
    file.write_bytes(file.read_bytes()[:-1])
    again = run()
    assert (again.shards, again.digest, again.encoded) == (first.shards, first.digest, 0)
    assert len(TokenShards(again.shards, seed=0).batch(0, 8)) == 8
    assert len(TokenShards(again.shards, seed=0).validation()) > 0


def test_batches_are_repeatable(shards: str) -> None:
    one, other = TokenShards(shards, seed=1), TokenShards(shards, seed=1)
    assert (one.batch(3, 8).codes == other.batch(3, 8).codes).all()
    assert (one.batch(3, 8).codes != one.batch(4, 8).codes).any()
    assert one.batch(0, 8).codes.dtype == np.uint16


def test_a_part_that_is_not_its_manifests_is_refused(shards: str) -> None:
    part = Path(shards) / read_manifest(shards).train[0].file
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(ClipgenError, match=f"{part} is not the file that its manifest names"):
        TokenShards(shards, seed=0).batch(0, 8)
    part.unlink()
    with pytest.raises(ClipgenError, match="is not the file that its manifest names"):
        TokenShards(shards, seed=0).batch(0, 8)


def test_rows_come_from_several_parts_in_the_order_asked_for(pipeline: Storage, tmp_path: Path) -> None:
    out = Storage(str(tmp_path / "root"))
    made = tokens.run(
        tokens.Config(rows_per_part=10),
        images=pipeline.images,
        embeddings=pipeline.current("embeddings", "tests").path,
        vqgan=pipeline.current("vqgan", "tests").path,
        out=out,
        tracker=NullTracker(),
    )
    assert len(made.manifest.train) == 8
    shards = TokenShards(made.shards, seed=0)
    whole = np.concatenate(list(shards.embeddings()))
    rows = np.random.default_rng(0).permutation(shards.rows)
    assert (shards.take(rows).embeddings == whole[rows]).all()
    assert shards._part.cache_info().currsize <= 2 * shards.order.window


def test_a_damaged_or_missing_manifest_is_one_sentence(shards: str, tmp_path: Path) -> None:
    with pytest.raises(ClipgenError, match="there are no token shards at"):
        read_manifest(str(tmp_path / "none"))
    manifest = Path(shards) / "manifest.json"
    manifest.write_text(json.dumps({"grid": 4}))
    with pytest.raises(ClipgenError, match=r"manifest.json is damaged"):
        read_manifest(shards)


def test_an_image_without_an_embedding_stops_with_the_way_out(
    pipeline: Storage, storage: Storage, tmp_path: Path
) -> None:
    embeddings = tmp_path / "partial.lance"
    whole = lance.dataset(pipeline.current("embeddings", "tests").path).to_table()
    lance.write_dataset(whole.slice(0, 70), embeddings)
    with pytest.raises(ClipgenError, match="2 images have no embedding .* materialise clip_embeddings"):
        tokens.run(
            tokens.Config(),
            images=pipeline.images,
            embeddings=str(embeddings),
            vqgan=pipeline.current("vqgan", "tests").path,
            out=storage,
            tracker=NullTracker(),
        )


def with_columns(pipeline: Storage, folder: Path, **columns: list[Any]) -> str:
    """A copy of the images table with metadata, as `raw_images` would have written it."""
    table = lance.dataset(pipeline.images).to_table()
    table = table.drop_columns([name for name in columns if name in table.schema.names])
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    url = str(folder / "images.lance")
    lance.write_dataset(table, url, mode="overwrite")
    return url


def run_on(images: str, pipeline: Storage, out: Storage, **config: Any) -> tokens.Result:
    inputs = {stage: pipeline.current(stage, "tests").path for stage in ("embeddings", "vqgan")}
    return tokens.run(tokens.Config(**config), images=images, **inputs, out=out, tracker=NullTracker())


def test_a_condition_chooses_the_images_and_their_embeddings(
    pipeline: Storage, storage: Storage, tmp_path: Path
) -> None:
    scores = [float(i) for i in range(72)]
    images = with_columns(pipeline, tmp_path, score=scores)
    whole, chosen = (run_on(images, pipeline, storage, where=where) for where in (None, "score >= 60"))
    assert (chosen.selected, chosen.total, chosen.manifest.rows) == (12, 72, 12)
    assert chosen.shards != whole.shards and chosen.manifest.where == "score >= 60"
    ids = set(lance.dataset(images).to_table(columns=["id"], filter="score >= 60")["id"].to_pylist())
    stored = EmbeddingTable(chosen.manifest.embeddings, chosen.manifest.embeddings_version)
    assert set(stored.table.to_table(columns=["id"])["id"].to_pylist()) == ids
    assert stored.clip == EmbeddingTable(whole.manifest.embeddings).clip
    images = with_columns(pipeline, tmp_path, score=scores[::-1])
    again = run_on(images, pipeline, storage, where="score >= 60")
    assert again.digest != chosen.digest
    now = EmbeddingTable(again.manifest.embeddings)
    assert set(now.table.to_table(columns=["id"])["id"].to_pylist()).isdisjoint(ids)
    assert now.table.count_rows() == 12


def test_a_manifest_without_a_condition_is_as_it_was(shards: str) -> None:
    manifest = read_manifest(shards)
    assert "where" not in manifest.model_dump() and manifest.where is None


def test_only_the_selected_images_are_encoded(pipeline: Storage, storage: Storage, tmp_path: Path) -> None:
    images = with_columns(pipeline, tmp_path, license=["cc0"] * 10 + ["mine"] * 62)
    assert run_on(images, pipeline, storage, where="license = 'cc0'").encoded == 10


def test_the_transformer_never_meets_a_caption(pipeline: Storage, storage: Storage, tmp_path: Path) -> None:
    """The method is language-free: captions change nothing of what it is trained on, and cannot select it."""
    made = list[tokens.Result]()
    for captions in (["a disc"] * 72, ["a square"] * 72):
        images = with_columns(pipeline, tmp_path, caption=captions)
        made.append(run_on(images, pipeline, Storage(f"{storage.root}-{len(made)}"), views=1))
        with pytest.raises(ClipgenError, match="No field named caption"):
            run_on(images, pipeline, storage, where="caption = 'a disc'")
    assert (
        made[0].digest == made[1].digest and made[0].manifest.images_digest == made[1].manifest.images_digest
    )
    files = [part.file for part in (*made[0].manifest.train, *made[0].manifest.validation)]
    names = {name for file in files for name in pq.read_schema(f"{made[0].shards}/{file}").names}
    assert names == {"id", "view", "codes", "embedding"}
