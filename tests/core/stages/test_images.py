import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Literal

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipgen_core.data.examine import examine
from clipgen_core.data.pixels import png_bytes
from clipgen_core.data.sources import Source
from clipgen_core.data.tables import column
from clipgen_core.errors import ClipgenError
from clipgen_core.schema import IMAGES, REJECTS
from clipgen_core.stages import images
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker
from tests.conftest import COLOURS, PROCESSES, draw
from tests.core.data.test_sources import write_tar

CONFIG = images.Config()


def ingest(source: Path | str, storage: Storage, config: images.Config = CONFIG) -> images.Result:
    return images.run(config, source=str(source), out=storage, tracker=NullTracker())


def test_two_ingests_leave_one_row_a_picture(pictures: Path, storage: Storage) -> None:
    first = ingest(pictures / "pictures", storage)
    second = ingest(pictures / "pictures", storage)
    assert (first.added, second.added) == (72, 0)
    assert first.total == second.total == 72 == len(set(column(storage.images, "id")))
    assert first.digest == second.digest


def test_rows_say_what_the_picture_is(storage: Storage, tmp_path: Path) -> None:
    folder = tmp_path / "bücher und häuser" / "日本"
    folder.mkdir(parents=True)
    draw("red", "disc").save(folder / "ein Bild.jpg", format="PNG")
    ingest(tmp_path / "bücher und häuser", storage)
    row = lance.dataset(storage.images).to_table().to_pylist()[0]
    assert row["uri"].endswith("bücher und häuser/日本/ein Bild.jpg")
    assert (row["folder"], row["format"], row["width"], row["height"]) == ("日本", "PNG", 32, 32)
    assert row["image"] == (folder / "ein Bild.jpg").read_bytes()


def test_a_lost_images_table_is_read_again_whole(pictures: Path, storage: Storage) -> None:
    before = ingest(pictures / "pictures", storage)
    shutil.rmtree(storage.images)
    after = ingest(pictures / "pictures", storage)
    assert (after.added, after.total, after.digest) == (72, 72, before.digest)
    assert ingest(pictures / "pictures", storage).added == 0


def test_the_same_picture_under_two_names_is_one_row(storage: Storage, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        draw("red", "disc").save(tmp_path / name)
    assert ingest(tmp_path, storage).total == 1


def test_unusable_files_are_listed_and_the_run_goes_on(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "mixed"
    source.mkdir()
    draw("red", "disc").save(source / "good.png")
    data = (source / "good.png").read_bytes()
    (source / "zero.png").write_bytes(b"")
    (source / "notes.txt").write_text("no picture")
    (source / "truncated.png").write_bytes(data[: len(data) // 2])
    Image.new("RGB", (1, 1)).save(source / "dot.png")
    Image.new("1", (20000, 20000)).save(source / "bomb.png")
    (source / "dangling.png").symlink_to(source / "nowhere.png")
    (source / ".hidden").write_bytes(b"")
    result = ingest(source, storage)
    assert result.total == 1
    reasons = {
        Path(row["uri"]).name: row["reason"] for row in lance.dataset(storage.rejects).to_table().to_pylist()
    }
    assert reasons == {
        "zero.png": "empty",
        "truncated.png": "damaged",
        "dot.png": "too_small",
        "bomb.png": "too_large",
        "dangling.png": "unreadable",
    }
    assert result.found == 6 and result.others == {".txt": 1}
    assert result.reject_share == pytest.approx(5 / 6)
    again = ingest(source, storage)
    assert lance.dataset(storage.rejects).count_rows() == 5
    assert (again.found, again.rejects, again.others) == (6, result.rejects, result.others)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to drop rights")
def test_a_file_without_read_rights_is_a_reject(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "rights"
    source.mkdir()
    draw("red", "disc").save(source / "good.png")
    draw("blue", "disc").save(source / "secret.png")
    (source / "secret.png").chmod(0)
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.owner() == "root" and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    pid = os.fork()
    if pid == 0:
        try:
            os.setegid(65534)
            os.seteuid(65534)
            opened = Source(str(source))
            secret = next(file for file in opened.files() if file.path.endswith("secret.png"))
            outcome = examine(CONFIG, secret, next(opened.items(secret)))
            os._exit(0 if (outcome.reject or {}).get("reason") == "unreadable" else 1)
        except BaseException:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0


def test_bad_sources_are_one_sentence(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(ClipgenError, match="none does not exist: check the path"):
        ingest(tmp_path / "none", storage)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ClipgenError, match="is empty: put images into it"):
        ingest(empty, storage)
    (empty / "notes.txt").write_text("x")
    with pytest.raises(ClipgenError, match="is a file: name the folder"):
        ingest(empty / "notes.txt", storage)
    with pytest.raises(ClipgenError, match=r"holds no image, but 1 files of other kinds \(1 \.txt\): put"):
        ingest(empty, storage)
    (empty / "broken.png").write_bytes(b"x")
    with pytest.raises(ClipgenError, match="none of the 1 files under .* is a usable image"):
        ingest(empty, storage)


def test_preview_shows_the_table(pipeline: Storage) -> None:
    sheet = images.preview(pipeline.images, count=24, size=16)
    assert sheet.size == (12 * 16 + 11 * 2, 2 * 16 + 2)
    assert len(set(sheet.get_flattened_data())) > 5


def test_only_new_and_changed_files_are_read(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, read = tmp_path / "in", []
    (source / "a").mkdir(parents=True)
    for colour in ("red", "green"):
        draw(colour, "disc").save(source / "a" / f"{colour}.png")
    whole = Source.items
    monkeypatch.setattr(Source, "items", lambda self, file: (read.append(file.uri), whole(self, file))[1])
    assert ingest(source, storage).added == len(read) == 2
    again = ingest(source, storage)
    assert (again.added, again.found, len(read)) == (0, 2, 2)
    draw("blue", "disc").save(source / "a" / "blue.png")
    draw("gold", "cross").save(source / "a" / "red.png")
    third = ingest(source, storage)
    assert (third.added, third.found, third.total, len(read)) == (2, 3, 3, 4)


def test_a_mended_file_is_no_reject_any_more_and_rejects_can_be_tried_again(
    storage: Storage, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    draw("red", "disc", 12).save(source / "small.png")
    draw("red", "disc").save(source / "good.png")
    (source / "bad.png").write_bytes(b"no picture")
    assert ingest(source, storage).rejects == {"too_small": 1, "not_an_image": 1}
    draw("blue", "disc").save(source / "bad.png")
    mended = ingest(source, storage)
    assert (mended.rejects, mended.added, mended.rejected) == ({"too_small": 1}, 1, 1)
    lenient = images.Config(min_side=8)
    assert ingest(source, storage, lenient).added == 0
    retried = ingest(source, storage, lenient.model_copy(update={"retry_rejects": True}))
    assert (retried.added, retried.rejects, retried.found, retried.rejected) == (1, {}, 3, 0)


def test_rejects_whose_files_are_gone_leave_the_list(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "in"
    for folder in ("a", "b"):
        (source / folder).mkdir(parents=True)
        draw("red", "disc").save(source / folder / "good.png")
        (source / folder / "bad.png").write_bytes(b"no picture")
        (source / folder / "link.png").symlink_to(tmp_path / "nothing")
    ingest(source, storage)
    assert sorted(column(storage.rejects, "reason")) == ["not_an_image"] * 2 + ["unreadable"] * 2
    for folder in ("a", "b"):
        (source / folder / "bad.png").unlink()
        (source / folder / "link.png").unlink()
    one = images.run(CONFIG, source=str(source), out=storage, tracker=NullTracker(), folder="a")
    assert one.rejects == {"not_an_image": 1}
    assert ingest(source, storage).rejects == {"not_an_image": 2}
    assert ingest(source, storage, CONFIG.model_copy(update={"retry_rejects": True})).rejects == {}


def test_a_source_in_a_source_misses_no_folder(storage: Storage, tmp_path: Path) -> None:
    for folder in ("", "a", "a/in", "b"):
        (tmp_path / "s" / folder).mkdir(parents=True, exist_ok=True)
        draw("red", "disc", 20 + len(folder)).save(tmp_path / "s" / folder / "one.png")
    for source in ("s/a", "s", "s/a", "s/b"):
        assert ingest(tmp_path / source, storage).vanished == ()
    shutil.rmtree(tmp_path / "s" / "a" / "in")
    assert ingest(tmp_path / "s", storage).vanished == ()
    assert ingest(tmp_path / "s" / "a", storage).vanished == ("in",)


def test_one_folder_alone_and_a_folder_that_vanishes(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "in"
    for folder, colour in (("a", "red"), ("b's", "blue")):
        (source / folder).mkdir(parents=True)
        draw(colour, "disc").save(source / folder / "one.png")
    only = images.run(CONFIG, source=str(source), out=storage, tracker=NullTracker(), folder="b's")
    assert (only.found, only.total, only.vanished) == (1, 1, ())
    assert ingest(source, storage).total == 2
    shutil.rmtree(source / "b's")
    assert ingest(source, storage).vanished == ("b's",)
    assert lance.dataset(storage.images).count_rows() == 2
    with pytest.raises(ClipgenError, match=r"the folder \"b's\" is no longer under .* `clipgen prune`"):
        images.run(CONFIG, source=str(source), out=storage, tracker=NullTracker(), folder="b's")


def test_archives_and_files_go_into_one_table(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    red, blue, gold = (png_bytes(draw(colour, "disc")) for colour in ("red", "blue", "gold"))
    (tmp_path / "in" / "red.png").write_bytes(red)
    write_tar(tmp_path / "in" / "0.tar", {"b.png": blue, "r.png": red, "bad.jpg": b"x"})
    pq.write_table(pa.table({"image": [gold, blue, b"", None]}), tmp_path / "in" / "1.parquet")
    result = ingest(tmp_path / "in", storage)
    assert (result.found, result.total, result.rejects) == (7, 3, {"not_an_image": 1, "empty": 1})
    copies = lance.dataset(storage.copies).to_table().to_pylist()
    assert sorted(Path(row["uri"]).name for row in copies) == ["1.parquet#1", "red.png"]
    again = ingest(tmp_path / "in", storage)
    assert (again.found, again.added, again.reject_share) == (7, 0, result.reject_share)


@pytest.mark.slow
def test_two_writers_at_once_lose_nothing_and_duplicate_nothing(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for i in range(120):
        draw(COLOURS[i % 8], "disc", 20 + i // 8).save(source / f"{i}.png")
    config = images.Config(batch_size=10)
    writers = [PROCESSES.Process(target=ingest, args=(source, storage, config)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert len(column(storage.images, "id")) == len(set(column(storage.images, "id"))) == 120
    assert len(column(storage.files, "uri")) == len(set(column(storage.files, "uri"))) == 120


def test_an_archive_of_many_batches_keeps_all_its_rejects(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    files = {f"{i}.png": png_bytes(draw(COLOURS[i], "disc")) if i % 2 else b"bad" for i in range(8)}
    write_tar(tmp_path / "in" / "0.tar", files)
    config = images.Config(batch_size=2)
    for _ in range(2):
        result = ingest(tmp_path / "in", storage, config)
        assert (result.found, result.total, result.rejects) == (8, 4, {"not_an_image": 4})
        os.utime(tmp_path / "in" / "0.tar", (1, 1))


def test_a_name_that_is_no_utf8_is_taken_in(storage: Storage, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/in/b\xe4r"
    Path(os.fsdecode(folder)).mkdir(parents=True)
    (Path(os.fsdecode(folder)) / "one.png").write_bytes(png_bytes(draw("red", "disc")))
    result = ingest(tmp_path / "in", storage)
    assert (result.added, column(storage.images, "folder")) == (1, ["b\\udce4r"])
    again = images.run(
        CONFIG, source=str(tmp_path / "in"), out=storage, tracker=NullTracker(), folder="b\\udce4r"
    )
    assert (again.found, again.added) == (1, 0)


def test_a_file_that_could_not_be_read_is_tried_again_at_the_next_run(
    storage: Storage, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    draw("red", "disc").save(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "later.png")
    assert ingest(tmp_path / "in", storage).rejects == {"unreadable": 1}
    row = lance.dataset(storage.files).to_table(filter="uri LIKE '%link.png'").to_pylist()[0]
    draw("blue", "disc").save(tmp_path / "later.png")
    state = (tmp_path / "later.png").stat()
    stamped = {"stamp": f"'{state.st_size}-{state.st_mtime_ns}'"}
    lance.dataset(storage.files).update(stamped, where=f"uri = '{row['uri']}'")  # as if it had not changed
    again = ingest(tmp_path / "in", storage)
    assert (again.total, again.rejects, again.rejected) == (2, {}, 0)


def test_what_an_earlier_version_took_for_a_bad_image_is_no_reject_any_more(
    storage: Storage, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    draw("red", "disc").save(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "notes.txt").write_text("a disc")
    ingest(tmp_path / "in", storage)
    uri = f"file://{tmp_path}/in/notes.txt"
    reject = {"uri": uri, "file": uri, "reason": "not_an_image", "detail": "none of PNG"}
    lance.write_dataset(pa.Table.from_pylist([reject], schema=REJECTS), storage.rejects, mode="append")
    lance.dataset(storage.files).update({"items": "1", "rejected": "1"}, where=f"uri = '{uri}'")
    again = ingest(tmp_path / "in", storage)
    assert (again.found, again.rejects, again.others) == (1, {}, {".txt": 1})


def test_a_shard_that_was_cut_weighs_as_the_images_that_it_lacks(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for shard in range(3):
        pictures = {f"{i}.png": png_bytes(draw(COLOURS[i], "disc", 16 + shard)) for i in range(8)}
        write_tar(tmp_path / "in" / f"{shard}.tar", pictures | {"0.json": b"{}"})
    last = tmp_path / "in" / "2.tar"
    with tarfile.open(last) as archive:
        third = archive.getmembers()[2].offset
    last.write_bytes(last.read_bytes()[:third])  # at the border of two members
    result = ingest(tmp_path / "in", storage)
    assert (result.found, result.total, result.rejected) == (24, 18, 6)
    (reject,) = lance.dataset(storage.rejects).to_table().to_pylist()
    assert reject["reason"] == "damaged" and "cut short" in reject["detail"]
    assert ingest(tmp_path / "in", storage).rejected == 6


def test_metadata_goes_into_columns_and_follows_its_place(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    red, blue = (png_bytes(draw(colour, "disc")) for colour in ("red", "blue"))
    write_tar(tmp_path / "in" / "0.tar", {"r.png": red, "r.json": b'{"score": 3}', "b.png": blue})
    ingest(tmp_path / "in", storage)

    def scores() -> list[float | None]:
        rows = lance.dataset(storage.images).to_table(columns=["uri", "score"]).to_pylist()
        return [row["score"] for row in sorted(rows, key=lambda row: str(row["uri"]), reverse=True)]

    assert scores() == [3.0, None]
    write_tar(tmp_path / "in" / "1.tar", {"x.png": red, "x.json": b'{"score": 9}'})  # a copy elsewhere
    ingest(tmp_path / "in", storage)
    assert scores() == [3.0, None]
    write_tar(tmp_path / "in" / "0.tar", {"r.png": red, "b.png": blue, "b.json": b'{"score": 4}'})
    again = ingest(tmp_path / "in", storage)
    assert (again.added, again.replaced, again.total) == (0, 0, 2)
    assert scores() == [None, 4.0]
    ingest(tmp_path / "in", storage, images.Config(columns=(), read_again=True))
    assert scores() == [None, 4.0]


@pytest.mark.parametrize("store", ["images", "references"])
def test_an_image_whose_place_is_gone_has_the_metadata_of_the_other(
    store: Literal["images", "references"], storage: Storage, tmp_path: Path
) -> None:
    config = images.Config(mirror_after_days=0, store=store)
    for folder, licence in (("a", "cc0"), ("b", "unknown")):
        (tmp_path / "in" / folder).mkdir(parents=True)
        draw("red", "disc").save(tmp_path / "in" / folder / "1.png")
        (tmp_path / "in" / folder / "1.json").write_text(json.dumps({"license": licence}))
    draw("blue", "disc").save(tmp_path / "in" / "b" / "2.png")
    ingest(tmp_path / "in", storage, images.Config(columns=(), store=store))
    ingest(tmp_path / "in", storage, config.model_copy(update={"read_again": True}))
    (row,) = lance.dataset(storage.images).to_table(filter="uri LIKE '%1.png'").to_pylist()
    assert (row["folder"], row["license"]) == ("a", "cc0")
    shutil.rmtree(tmp_path / "in" / "a")
    ingest(tmp_path / "in", storage, config)
    (row,) = lance.dataset(storage.images).to_table(filter="uri LIKE '%1.png'").to_pylist()
    assert (row["folder"], row["license"]) == ("b", "unknown")


def test_metadata_that_cannot_be_read_is_said(
    storage: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    red, blue, green = (png_bytes(draw(colour, "disc")) for colour in ("red", "blue", "green"))
    (tmp_path / "in" / "1.png").write_bytes(red)
    (tmp_path / "in" / "1.txt").write_bytes("ein gr\u00fcner Kreis".encode("latin-1"))
    write_tar(tmp_path / "in" / "0.tar", {"b.png": blue, "b.json": b"{", "g.png": green, "g.json": b"{}"})
    assert ingest(tmp_path / "in", storage).lacking == 2
    said = f"the metadata of 2 images cannot be read, first that in file://{tmp_path}/in/0.tar#b.json (it is"
    assert said in capsys.readouterr().err
    assert column(storage.images, "caption") == [None] * 3


def test_a_table_of_an_earlier_version_gets_its_columns(
    storage: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    draw("red", "disc").save(tmp_path / "in" / "1.png")
    (tmp_path / "in" / "1.txt").write_text("a red disc")
    ingest(tmp_path / "in", storage, images.Config(columns=()))
    assert lance.dataset(storage.images).schema.names == IMAGES.names
    assert ingest(tmp_path / "in", storage).total == 1
    assert "the columns caption, license, url, score, label are new: 1 images" in capsys.readouterr().err
    assert column(storage.images, "caption") == [None]
    again = ingest(tmp_path / "in", storage, images.Config(read_again=True))
    assert (again.found, again.added, again.total) == (1, 0, 1)
    assert column(storage.images, "caption") == ["a red disc"]
