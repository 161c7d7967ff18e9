import os
import shutil
from collections.abc import Callable
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from PIL import Image
from typer.testing import CliRunner

from clipgen_core.cli import app
from clipgen_core.data import folders
from clipgen_core.data import prune as module
from clipgen_core.data.prune import prune
from clipgen_core.data.tables import column, upsert
from clipgen_core.errors import ClipgenError
from clipgen_core.schema import DUPLICATES
from clipgen_core.stages import embeddings, images
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker
from tests.conftest import draw


@pytest.fixture
def filled(storage: Storage, tmp_path: Path, clip_reference: str) -> Storage:
    """Folder a: red, blue and a reject; folder b: blue again and gold."""
    source = tmp_path / "in"
    for file, colour in {"a/1": "red", "a/2": "blue", "b/1": "blue", "b/2": "gold"}.items():
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        draw(colour, "disc").save(source / f"{file}.png")
    (source / "a" / "bad.png").write_bytes(b"bad")
    taken = images.run(images.Config(), source=str(source), out=storage, tracker=NullTracker())
    embeddings.run(
        embeddings.Config(), images=taken.table, clip=clip_reference, out=storage, tracker=NullTracker()
    )
    return storage


def test_a_folder_goes_from_every_table_and_copies_elsewhere_stay(filled: Storage) -> None:
    vectors = filled.current("embeddings", "tests").path
    gone = prune(filled, "a", dry_run=True)
    assert (gone.images, gone.moved) == (1, 1)
    assert len(column(filled.images, "id")) == 3
    assert prune(filled, "a", dry_run=False) == gone
    rows = lance.dataset(filled.images).to_table(columns=["uri", "folder"]).to_pylist()
    assert sorted((Path(row["uri"]).name, row["folder"]) for row in rows) == [("1.png", "b"), ("2.png", "b")]
    assert column(vectors, "folder") == ["b", "b"]
    assert sorted(column(vectors, "id")) == sorted(column(filled.images, "id"))
    assert column(filled.rejects, "uri") == column(filled.copies, "uri") == []
    assert set(column(filled.files, "folder")) == {"b"}
    with pytest.raises(ClipgenError, match="no image under .* is in a folder 'a': see `clipgen folders`"):
        prune(filled, "a", dry_run=False)


def test_pairs_with_a_pruned_image_are_looked_up_again(filled: Storage) -> None:
    rows = lance.dataset(filled.images).to_table(columns=["id", "folder", "uri"]).to_pylist()
    red, blue, gold = (
        next(r["id"] for r in rows if r["uri"].endswith(n)) for n in ("a/1.png", "a/2.png", "b/2.png")
    )
    pairs = [{"id": gold, "folder": "b", "nearest": red, "cosine": 0.9}]
    pairs += [{"id": blue, "folder": "a", "nearest": gold, "cosine": 0.9}]
    url = filled.duplicates("tiny")
    upsert(url, pa.Table.from_pylist(pairs, schema=DUPLICATES), "id", overwrite=False)
    prune(filled, "a", dry_run=False)
    assert column(url, "id") == [blue]  # which folder b has, too


def test_what_was_pruned_is_taken_in_again(filled: Storage, tmp_path: Path) -> None:
    prune(filled, "b", dry_run=False)
    again = images.run(images.Config(), source=str(tmp_path / "in"), out=filled, tracker=NullTracker())
    assert (again.added, again.total) == (1, 3)


@pytest.mark.parametrize("survived", range(5))
def test_a_prune_that_was_killed_is_ended_by_another_and_undone_by_reading(
    filled: Storage, tmp_path: Path, survived: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, delete = list[str](), module.delete

    def interrupted(url: str, where: str) -> None:
        if len(done) == survived:
            raise KeyboardInterrupt
        done.append(url)
        delete(url, where)

    before = sorted(column(filled.images, "id"))
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(module, "delete", interrupted)
        prune(filled, "a", dry_run=False)
    kept = tmp_path / "kept"
    shutil.copytree(filled.root, kept)
    again = images.run(
        images.Config(), source=str(tmp_path / "in"), out=Storage(str(kept)), tracker=NullTracker()
    )
    assert sorted(column(again.table, "id")) == before and again.rejects == {"not_an_image": 1}
    prune(filled, "a", dry_run=False)
    assert set(column(filled.images, "folder")) == set(column(filled.files, "folder")) == {"b"}
    assert not column(filled.rejects, "uri")


def test_a_folder_whose_name_is_not_utf8_is_pruned_by_it(
    storage: Storage, tmp_path: Path, clip_reference: str
) -> None:
    folder = os.fsencode(tmp_path / "in") + b"/bad\xff"
    Path(os.fsdecode(folder)).mkdir(parents=True)
    draw("red", "disc").save(tmp_path / "1.png")
    shutil.copy(tmp_path / "1.png", folder + b"/1.png")
    images.run(images.Config(), source=str(tmp_path / "in"), out=storage, tracker=NullTracker())
    assert prune(storage, os.fsdecode(b"bad\xff"), dry_run=True).images == 1


def test_a_folder_may_be_named_as_its_source_is(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "flowers"
    (source / "flowers").mkdir(parents=True)
    draw("red", "disc").save(source / "flowers" / "1.png")
    images.run(images.Config(), source=str(source), out=storage, tracker=NullTracker())
    draw("blue", "disc").save(source / "2.png")
    shutil.rmtree(source / "flowers")
    again = images.run(images.Config(), source=str(source), out=storage, tracker=NullTracker())
    assert again.vanished == ("flowers",)
    assert prune(storage, "flowers", str(source), dry_run=False).images == 1


def test_a_folder_that_two_sources_have_needs_a_source(filled: Storage, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "a").mkdir(parents=True)
    draw("green", "disc").save(other / "a" / "3.png")
    draw("red", "disc").save(other / "a" / "1.png")  # which in/a has, too
    images.run(images.Config(), source=str(other), out=filled, tracker=NullTracker())
    first, second = f"file://{tmp_path}/in", f"file://{other}"
    with pytest.raises(ClipgenError, match=f"2 sources have a folder 'a', {first}, {second}: name one"):
        prune(filled, "a", dry_run=True)
    with pytest.raises(ClipgenError, match=f"no folder 'a' was read from /no, but from {first}, {second}"):
        prune(filled, "a", "/no", dry_run=True)
    shown = CliRunner().invoke(app, ["folders", "--root", filled.root], env={"COLUMNS": "300"}).output
    rows = [tuple(line.split()) for line in shown.splitlines()[1:]]
    assert rows == [("a", "2", first), ("a", "1", second), ("b", "1", first)]
    assert prune(filled, "a", str(other), dry_run=True) == prune(filled, "a", str(other), dry_run=False)
    assert len(column(filled.images, "id")) == 3 and sources(filled, "a") == {first}
    gone = prune(filled, "a", f"{tmp_path}/in/", dry_run=False)  # the only source now
    assert (gone.images, gone.moved) == (1, 1) and sources(filled, "a") == set()


def test_of_a_folder_that_two_sources_have_one_can_be_forgotten(filled: Storage, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "a").mkdir(parents=True)
    draw("red", "disc").save(other / "a" / "1.png")  # which in/a has, too
    images.run(images.Config(), source=str(other), out=filled, tracker=NullTracker())
    gone = prune(filled, "a", str(tmp_path / "in"), dry_run=False)
    assert (gone.images, gone.moved) == (0, 2)  # red lies in other/a, and blue in in/b
    assert sources(filled, "a") == {f"file://{other}"}
    assert column(filled.rejects, "uri") == []


def sources(storage: Storage, folder: str) -> set[str]:
    return {
        one for url in (storage.images, storage.files) for one in folders.sources(lance.dataset(url), folder)
    }


def test_the_command_asks_for_yes(filled: Storage) -> None:
    run = CliRunner().invoke
    shown = run(app, ["folders", "--root", filled.root], env={"COLUMNS": "300"}).output
    assert [line.split()[:2] for line in shown.splitlines()[1:]] == [["a", "2"], ["b", "1"]]
    assert (
        "1 images of a would be removed; repeat with --yes"
        in run(app, ["prune", "a", "--root", filled.root]).output
    )
    assert len(column(filled.images, "id")) == 3
    done = run(app, ["prune", "a", "--root", filled.root, "--yes"]).output
    assert "1 images of a are removed" in done and "1 are in other folders too and stay" in done
    assert run(app, ["prune", "zzz", "--root", filled.root]).exit_code == 2


def test_images_in_no_folder_are_pruned_by_the_name_that_is_shown(
    tmp_path: Path, storage: Storage, random_images: Callable[[int], list[Image.Image]]
) -> None:
    (tmp_path / "flat").mkdir()
    for number, image in enumerate(random_images(2)):
        image.save(tmp_path / "flat" / f"{number}.png")
    images.run(images.Config(), source=str(tmp_path / "flat"), out=storage, tracker=NullTracker())
    run = CliRunner().invoke
    shown = run(app, ["folders", "--root", storage.root], env={"COLUMNS": "300"}).output
    (row,) = shown.splitlines()[1:]
    name, count, source = row.split()
    assert (count, source) == ("2", f"file://{tmp_path}/flat")
    assert "2 images" in run(app, ["prune", name, "--root", storage.root, "--yes"]).output
    assert column(storage.images, "id") == []
