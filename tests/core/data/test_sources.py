import errno
import io
import os
import tarfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError

from clipgen_core.data.pixels import png_bytes
from clipgen_core.data.sources import File, Item, Source
from clipgen_core.errors import ClipgenError
from clipgen_core.settings.images import Wanted
from tests.conftest import COLOURS, draw

PNG = {colour: png_bytes(draw(colour, "disc")) for colour in COLOURS}


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def read(source: Source, file: File) -> Item:
    (item,) = source.items(file)
    return item


def test_files_come_with_their_top_level_folder_and_a_stamp(tmp_path: Path) -> None:
    for file in ("a/b/one.png", "a/two.png", "c/three.png", "four.png", ".hidden/x.png", "a/.x.png"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(PNG["red"])
    source = Source(str(tmp_path))
    assert source.folders() == ["", "a", "c"]
    listed = {Path(file.path).name: file for file in source.files()}
    assert {name: file.folder for name, file in listed.items()} == {
        "one.png": "a",
        "two.png": "a",
        "three.png": "c",
        "four.png": "",
    }
    assert [Path(file.path).name for file in source.files("a")] == ["two.png", "one.png"]
    assert listed["one.png"].uri == f"file://{tmp_path}/a/b/one.png"
    os.utime(tmp_path / "a/two.png", (1, 1))
    assert {Path(f.path).name for f in source.files() if f.stamp != listed[Path(f.path).name].stamp} == {
        "two.png"
    }


def test_pictures_of_a_webdataset_shard_without_their_labels(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "0.tar", {"1.png": PNG["red"], "1.json": b"{}", "1.txt": b"a disc", "2.png": PNG["blue"]}
    )
    source = Source(str(tmp_path))
    (file,) = source.files()
    items = list(source.items(file))
    assert [item.uri.rpartition("/")[2] for item in items] == ["0.tar#1.png", "0.tar#2.png"]
    assert [item.data for item in items] == [PNG["red"], PNG["blue"]]


@pytest.mark.parametrize("shape", ["binary", "struct"])
def test_pictures_of_a_parquet_file(tmp_path: Path, shape: str) -> None:
    data = [PNG[colour] for colour in COLOURS] * 20
    column = data if shape == "binary" else [{"bytes": one, "path": "x"} for one in data]
    name = "jpg" if shape == "binary" else "image"
    pq.write_table(pa.table({"caption": ["x"] * len(data), name: column}), tmp_path / "0.parquet")
    source = Source(str(tmp_path))
    items = list(source.items(next(source.files())))
    assert [item.data for item in items] == data
    assert items[-1].uri.endswith("0.parquet#159")


@pytest.mark.parametrize("name", ["cut.tar", "cut.parquet", "text.parquet"])
def test_a_damaged_archive_ends_in_a_problem(tmp_path: Path, name: str) -> None:
    if name == "cut.tar":
        write_tar(tmp_path / name, {f"{i}.png": PNG["red"] * 50 for i in range(3)})
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:20_000])
    else:
        (tmp_path / name).write_bytes(b"PAR1 no more")
    source = Source(str(tmp_path))
    *_, last = source.items(next(source.files()))
    assert last.problem and last.uri.endswith(name)


def test_a_remote_store_is_listed_and_read() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/photos/a/one.png", PNG["red"])
    memory.pipe("/bucket/photos/two.png", PNG["blue"])
    source = Source("memory://bucket/photos")
    assert source.folders() == ["", "a"]
    files = {file.folder: file for file in source.files()}
    assert read(source, files["a"]).data == PNG["red"]
    assert files["a"].uri == "memory:///bucket/photos/a/one.png"
    memory.rm("/bucket", recursive=True)


def test_an_outage_is_no_fault_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/one.png", PNG["red"])
    source, asked = Source("memory://bucket"), []
    (file,) = source.files()

    def cut(path: str, **given: object) -> bytes:
        asked.append(path)
        return PNG["red"] if len(asked) == 3 else PNG["red"][:10]

    monkeypatch.setattr(source.filesystem, "cat_file", cut)
    assert read(source, file).data == PNG["red"] and len(asked) == 3
    monkeypatch.setattr("clipgen_core.filesystem.ATTEMPTS", 2)
    asked.extend("xx")
    with pytest.raises(ClipgenError, match=r"one.png could not be read \(got 10 of .* run it again when"):
        read(source, file)
    memory.rm("/bucket", recursive=True)


def test_a_file_that_is_gone_is_a_problem_and_no_error(tmp_path: Path) -> None:
    item = read(Source(str(tmp_path)), File(str(tmp_path / "gone.png"), "file:///gone.png", "", 1, "x"))
    assert item.problem and "No such file" in item.problem and item.reason == "unreadable"


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE])
def test_a_fault_of_the_machine_is_tried_again_and_then_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    (tmp_path / "one.png").write_bytes(PNG["red"])
    write_tar(tmp_path / "two.tar", {"a.png": PNG["red"]})
    source = Source(str(tmp_path))
    one, two = source.files()
    monkeypatch.setattr("clipgen_core.filesystem.ATTEMPTS", 2)

    def failing(*given: object, **more: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch, pytest.raises(ClipgenError, match="one.png could not be read"):
        patch.setattr(source.filesystem, "cat_file", failing)
        read(source, one)
    with monkeypatch.context() as patch, pytest.raises(ClipgenError, match="two.tar could not be read"):
        patch.setattr("fsspec.implementations.local.LocalFileOpener.read", failing)
        list(source.items(two))


def test_a_token_that_expires_stops_the_run_and_a_refused_object_is_a_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/one.png", PNG["red"])
    source = Source("memory://bucket")
    (file,) = source.files()

    def refused(*given: object, **more: object) -> None:
        raise PermissionError("403 Forbidden")

    def expired(*given: object, **more: object) -> None:
        raise PermissionError("expired") from ClientError({"Error": {"Code": "ExpiredToken"}}, "GetObject")

    monkeypatch.setattr(source.filesystem, "cat_file", expired)
    with pytest.raises(ClipgenError, match=r"one.png could not be read .expired.: run it again"):
        read(source, file)
    monkeypatch.undo()
    assert read(source, file).data == PNG["red"]
    monkeypatch.setattr(source.filesystem, "cat_file", refused)
    with pytest.raises(ClipgenError, match=r"one.png could not be read .403 Forbidden.: run it again"):
        read(source, file)  # which was read before
    source = Source("memory://bucket")
    item = read(source, file)
    assert item.problem == "403 Forbidden" and item.reason == "unreadable"
    monkeypatch.setattr(source.filesystem, "ls", refused)
    with pytest.raises(ClipgenError, match="one.png could not be read .403 Forbidden.: run it again"):
        read(source, file)
    monkeypatch.undo()
    memory.rm("/bucket", recursive=True)


def test_what_is_no_image_is_no_item_and_a_large_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text("{}")
    (tmp_path / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (tmp_path / "no_ending").write_bytes(PNG["red"])
    (tmp_path / "film.png").write_bytes(PNG["red"] + bytes(2000))
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(2000))
    source = Source(str(tmp_path), Wanted(max_bytes=1500))
    items = {Path(item.uri).name: item for file in source.files() for item in source.items(file)}
    assert items.keys() == {"no_ending", "film.png"}
    assert items["film.png"].reason == "too_large" and items["no_ending"].data == PNG["red"]


def test_links_are_followed_once_and_what_blocks_is_left_out(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    (elsewhere / "deep" / "one.png").write_bytes(PNG["red"])
    source = tmp_path / "in"
    (source / "a").mkdir(parents=True)
    (source / "linked").symlink_to(elsewhere)
    (source / "file.png").symlink_to(elsewhere / "deep" / "one.png")
    (source / "a" / "two.png").write_bytes(PNG["blue"])
    os.mkfifo(source / "a" / "pipe.png")
    opened = Source(str(source))
    assert opened.folders() == ["", "a", "linked"]
    listed = [file.uri.removeprefix(f"file://{source}/") for file in opened.files()]
    assert listed == ["file.png", "a/two.png", "linked/deep/one.png"]
    assert opened.directories("linked").keys() == {f"{source}/linked", f"{source}/linked/deep"}


def test_a_link_to_a_folder_that_holds_it_is_not_followed(tmp_path: Path) -> None:
    source, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    for folder in (source / "a" / "deep", elsewhere):
        folder.mkdir(parents=True)
        (folder / "one.png").write_bytes(PNG["red"])
    (source / "linked").symlink_to(elsewhere)
    (source / "again").symlink_to(tmp_path)
    (source / "a" / "deep" / "up").symlink_to("..")
    (source / "a" / "deep" / "over").symlink_to(source)
    (source / "a" / "deep" / "beside").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(source)
    (tmp_path / "named").symlink_to(source)
    for name in ("in", "named"):
        opened = Source(str(tmp_path / name))
        listed = [file.uri.removeprefix(f"{opened.base_uri}/") for file in opened.files()]
        assert listed == ["a/deep/one.png", "a/deep/beside/one.png", "linked/one.png"]
        assert opened.folders() == ["a", "linked"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a").chmod(0)
    source = Source(str(tmp_path / "in"))
    (file,) = source.files()
    assert read(source, file).reason == "unreadable"
    (tmp_path / "in" / "a").chmod(0o755)


def test_a_source_has_the_same_uris_from_wherever_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(tmp_path / "in" / "deep")
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in ("../in", "./../elsewhere/../in", str(tmp_path / "in"), "link/../../in"):
        assert Source(name).base_uri == f"file://{tmp_path}/in"
    assert Source("link").base_uri == f"file://{tmp_path}/elsewhere/link"
    assert Source("link/..").base_uri == f"file://{tmp_path}/in"
