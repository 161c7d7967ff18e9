from pathlib import Path

import lance
import pyarrow as pa
import pytest

from clipgen_core.data.forget import forget_ids, forget_places, missing
from clipgen_core.data.pixels import png_bytes
from clipgen_core.data.sources import Source
from clipgen_core.data.tables import column, upsert
from clipgen_core.schema import DUPLICATES
from clipgen_core.stages import embeddings, images
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker
from tests.conftest import draw
from tests.core.data.test_sources import write_tar


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


def test_pairs_with_an_image_that_was_forgotten_are_looked_up_again(storage: Storage) -> None:
    ids = [f"{number:064x}" for number in range(3)]
    upsert(storage.images, pa.table({"id": ids[:1], "uri": ["file:///in/x"]}), "id", overwrite=False)
    rows = {"id": ids, "folder": ["a"] * 3, "nearest": [ids[1], ids[0], ids[1]], "cosine": [0.9] * 3}
    upsert(storage.duplicates("tiny"), pa.table(rows, schema=DUPLICATES), "id", overwrite=False)
    forget_ids(storage, ids[:1])
    assert column(storage.duplicates("tiny"), "id") == [ids[2]]


def tarred(source: Path, *colours: str, cut: int | None = None) -> None:
    """Write an archive of crosses, of which the last `cut` bytes are missing."""
    members = {f"{colour}.png": png_bytes(draw(colour, "cross")) for colour in colours}
    write_tar(source / "a" / "x.tar", members)
    data = (source / "a" / "x.tar").read_bytes()
    (source / "a" / "x.tar").write_bytes(data[:-cut] if cut else data)


def members(storage: Storage) -> set[str]:
    return {place.partition("#")[2] for place in places(storage) if "#" in place}


def test_members_that_left_a_rewritten_archive_are_forgotten(
    source: Path, storage: Storage, clip_reference: str
) -> None:
    tarred(source, "red", "gold", "teal")
    draw("teal", "cross").save(source / "b" / "copy.png")
    ingest(source, storage, clip_reference)
    tarred(source, "red")
    again = ingest(source, storage, clip_reference)
    assert (again.replaced, again.total, members(storage)) == (1, 5, {"red.png"})
    assert places(storage).keys() >= {"b/copy.png"} and len(embedded(storage)) == 5
    write_tar(source / "a" / "x.tar", {"notes.txt": b"no image"})
    assert ingest(source, storage, clip_reference).replaced == 1 and not members(storage)


def test_a_member_that_was_renamed_is_kept(source: Path, storage: Storage, clip_reference: str) -> None:
    tarred(source, "red", "gold")
    ingest(source, storage, clip_reference)
    before = places(storage)["a/x.tar#gold.png"]
    write_tar(source / "a" / "x.tar", {"new.png": png_bytes(draw("gold", "cross"))})
    again = ingest(source, storage, clip_reference)
    assert (again.replaced, again.added) == (1, 0) and places(storage)["a/x.tar#new.png"] == before


def test_an_archive_that_is_damaged_now_loses_no_member(
    source: Path, storage: Storage, clip_reference: str
) -> None:
    tarred(source, "red", "gold", "teal")
    ingest(source, storage, clip_reference)
    tarred(source, "red", "gold", cut=10_240 - 1024)  # the end of the file is padded
    ingest(source, storage, clip_reference)
    assert members(storage) == {"red.png", "gold.png", "teal.png"}
    tarred(source, "red", "gold")
    ingest(source, storage, clip_reference)
    assert members(storage) == {"red.png", "gold.png"}


def test_an_archive_that_is_read_again_for_other_members_keeps_those_it_has(
    source: Path, storage: Storage
) -> None:
    tarred(source, "red", "gold")
    images.run(images.Config(), source=str(source), out=storage, tracker=NullTracker())
    config = images.Config(read_again=True, key="red.png")
    images.run(config, source=str(source), out=storage, tracker=NullTracker())
    assert members(storage) == {"red.png", "gold.png"}


@pytest.mark.parametrize("retry_rejects", [False, True])
def test_a_file_with_rejects_that_changed_leaves_nothing_behind(
    source: Path, storage: Storage, retry_rejects: bool
) -> None:
    good = png_bytes(draw("gold", "cross"))
    write_tar(source / "a" / "x.tar", {"gold.png": good, "bad.png": good[:50]})
    config = images.Config(retry_rejects=retry_rejects)
    images.run(config, source=str(source), out=storage, tracker=NullTracker())
    assert members(storage) == {"gold.png"}
    tarred(source, "teal")
    images.run(config, source=str(source), out=storage, tracker=NullTracker())
    assert members(storage) == {"teal.png"}
