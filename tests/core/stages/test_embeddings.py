import shutil
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
from PIL import Image

from clipgen_core.data.decode import decode
from clipgen_core.data.embeddings import EmbeddingTable
from clipgen_core.data.tables import vectors
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.schema import IMAGES, LOCAL
from clipgen_core.stages import embeddings, images
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker
from tests.conftest import draw


def test_every_picture_has_its_own_clip_embedding(pipeline: Storage, clip_reference: str) -> None:
    table = lance.dataset(pipeline.current("embeddings", "tests").path).to_table()
    pictures = lance.dataset(pipeline.images).to_table()
    assert sorted(table["id"].to_pylist()) == sorted(pictures["id"].to_pylist())
    assert np.allclose(np.linalg.norm(vectors(table), axis=1), 1, atol=1e-5)
    row = table.slice(10, 1)
    chosen = pictures["image"][pictures["id"].to_pylist().index(row["id"][0].as_py())].as_py()
    expected = ClipEncoder(clip_reference).encode_images([decode(chosen).image])
    assert np.allclose(vectors(row), expected, atol=0.02)


def test_only_new_pictures_are_embedded(clip_reference: str, storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    counts = []
    for colours in (["red", "blue"], ["red", "blue", "green"], ["red", "blue", "green"]):
        for colour in colours:
            draw(colour, "disc").save(source / f"{colour}.png")
        taken = images.run(images.Config(), source=str(source), out=storage, tracker=NullTracker())
        made = embeddings.run(
            embeddings.Config(batch_size=2, block_size=2),
            images=taken.table,
            clip=clip_reference,
            out=storage,
            tracker=NullTracker(),
        )
        counts.append((made.embedded, made.total, made.version))
    assert [c[:2] for c in counts] == [(2, 2), (1, 3), (0, 3)]
    assert counts[1][2] == counts[2][2]


def test_the_table_names_its_clip(pipeline: Storage, clip_reference: str) -> None:
    table = lance.dataset(pipeline.current("embeddings", "tests").path)
    assert table.schema.metadata[b"clip"].decode() == clip_reference
    assert table.schema.metadata[b"clip_key"].decode() == ClipEncoder(clip_reference).key


def test_a_clip_whose_folder_moved_is_followed(clip_reference: str, storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    draw("red", "disc").save(tmp_path / "in" / "1.png")
    taken = images.run(images.Config(), source=str(tmp_path / "in"), out=storage, tracker=NullTracker())
    shutil.copytree(clip_reference.removeprefix(LOCAL), tmp_path / "before")

    def embedded(clip: str) -> tuple[int, str]:
        made = embeddings.run(
            embeddings.Config(), images=taken.table, clip=clip, out=storage, tracker=NullTracker()
        )
        return made.embedded, EmbeddingTable(made.table).clip

    before, after = (f"{LOCAL}{tmp_path}/{name}" for name in ("before", "after"))
    assert embedded(before) == (1, before)
    assert embedded(clip_reference) == (0, before)  # which is still there
    (tmp_path / "before").rename(tmp_path / "after")
    assert embedded(after) == (0, after)


def test_an_image_that_fails_later_becomes_a_reject_and_the_others_are_embedded(
    clip_reference: str, storage: Storage, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for colour in ("red", "blue", "green"):
        draw(colour, "disc").save(tmp_path / "in" / f"{colour}.png")
    Image.new("RGB", (60_000, 20), "red").save(tmp_path / "in" / "strip.png")
    lenient = images.Config(max_aspect=1e9)
    taken = images.run(lenient, source=str(tmp_path / "in"), out=storage, tracker=NullTracker())
    rows = lance.dataset(taken.table).to_table().to_pylist()
    broken = next(row for row in rows if row["uri"].endswith("blue.png"))
    table = pa.Table.from_pylist([broken | {"image": broken["image"][:60]}], schema=IMAGES)
    lance.dataset(taken.table).merge_insert("id").when_matched_update_all().execute(table)
    for _ in range(2):
        made = embeddings.run(
            embeddings.Config(batch_size=2),
            images=taken.table,
            clip=clip_reference,
            out=storage,
            tracker=NullTracker(),
        )
        assert made.total == 3 == lance.dataset(taken.table).count_rows()
    (reject,) = lance.dataset(storage.rejects).to_table().to_pylist()
    assert reject["uri"] == broken["uri"] and broken["id"] in reject["detail"]
    assert reject["reason"] == "damaged"
    again = images.run(lenient, source=str(tmp_path / "in"), out=storage, tracker=NullTracker())
    assert (again.total, again.rejects) == (3, {"damaged": 1})
