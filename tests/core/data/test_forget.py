from pathlib import Path

import lance
import pytest

from clipgen_core.data.forget import forget_ids, forget_places, missing
from clipgen_core.data.sources import Source
from clipgen_core.data.tables import column
from clipgen_core.stages import embeddings, images
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker
from tests.conftest import draw


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three images; the red one lies in two folders."""
    for name, colour in (("a/red", "red"), ("a/blue", "blue"), ("b/red", "red"), ("b/green", "green")):
        file = tmp_path / "in" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        draw(colour, "disc").save(file)
    return tmp_path / "in"


def ingest(source: Path, storage: Storage, clip: str) -> images.Result:
    taken = images.run(images.Config(), source=str(source), out=storage, tracker=NullTracker())
    embeddings.run(embeddings.Config(), images=taken.table, clip=clip, out=storage, tracker=NullTracker())
    return taken


def places(storage: Storage) -> dict[str, str]:
    """The id at each place, in the images table and among the copies."""
    rows = lance.dataset(storage.images).to_table(columns=["uri", "id"]).to_pylist()
    rows += lance.dataset(storage.copies).to_table(columns=["uri", "id"]).to_pylist()
    return {row["uri"].partition("/in/")[2]: row["id"] for row in rows}


def embedded(storage: Storage) -> set[str]:
    return set(column(storage.current("embeddings", "tests").path, "id"))


def test_an_image_is_forgotten_by_its_id_wherever_it_lies(
    source: Path, storage: Storage, clip_reference: str
) -> None:
    ingest(source, storage, clip_reference)
    red = places(storage)["a/red.png"]
    assert forget_ids(storage, [red, "0" * 64], dry_run=True) == 1 and red in embedded(storage)
    assert forget_ids(storage, [red]) == 1
    assert places(storage).keys() == {"a/blue.png", "b/green.png"} and red not in embedded(storage)
    assert forget_ids(storage, [red]) == 0
    assert ingest(source, storage, clip_reference).total == 2  # its files have not changed


def test_a_place_that_is_forgotten_leaves_the_image_at_another(
    source: Path, storage: Storage, clip_reference: str
) -> None:
    ingest(source, storage, clip_reference)
    held = places(storage)
    uris = [f"file://{source}/a/red.png", f"file://{source}/a/blue.png"]
    assert forget_places(storage, uris, dry_run=True) == 1 and places(storage) == held
    assert forget_places(storage, uris) == 1
    assert places(storage) == {"b/red.png": held["b/red.png"], "b/green.png": held["b/green.png"]}
    rows = lance.dataset(storage.images).to_table().to_pylist()
    assert {row["folder"] for row in rows} == {"b"}
    assert embedded(storage) == {held["b/red.png"], held["b/green.png"]}


def test_what_left_the_source_is_found(source: Path, storage: Storage, clip_reference: str) -> None:
    ingest(source, storage, clip_reference)
    (source / "a" / "blue.png").unlink()
    (source / "b" / "red.png").unlink()
    left = missing(storage, Source(str(source)))
    assert sorted(uri.partition("/in/")[2] for uri in left) == ["a/blue.png", "b/red.png"]
    assert forget_places(storage, left) == 1
    assert places(storage).keys() == {"a/red.png", "b/green.png"}
    assert missing(storage, Source(str(source))) == []


def test_a_file_that_was_overwritten_leaves_no_second_row(
    source: Path, storage: Storage, clip_reference: str
) -> None:
    ingest(source, storage, clip_reference)
    before = places(storage)
    draw("gold", "cross").save(source / "a" / "blue.png")
    draw("teal", "cross").save(source / "a" / "red.png")
    (source / "b" / "green.png").write_bytes(b"no image")
    again = ingest(source, storage, clip_reference)
    assert (again.replaced, again.total, again.rejects) == (2, 3, {"not_an_image": 1})
    after = places(storage)
    assert after.keys() == {"a/blue.png", "a/red.png", "b/red.png"}
    assert after["b/red.png"] == before["b/red.png"] and after["a/red.png"] != before["a/red.png"]
    assert embedded(storage) == set(after.values())


def test_two_files_that_change_places_are_both_kept(
    source: Path, storage: Storage, clip_reference: str
) -> None:
    ingest(source, storage, clip_reference)
    before = places(storage)
    blue, green = source / "a" / "blue.png", source / "b" / "green.png"
    blue.rename(source / "x")
    green.rename(blue)
    (source / "x").rename(green)
    ingest(source, storage, clip_reference)
    after = places(storage)
    assert after["a/blue.png"] == before["b/green.png"] and after["b/green.png"] == before["a/blue.png"]
    assert embedded(storage) == set(after.values())
