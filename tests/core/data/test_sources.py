import io
import os
import tarfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipgen_core.data import sources
from clipgen_core.data.pixels import png_bytes
from clipgen_core.data.sources import File, Source
from clipgen_core.errors import ClipgenError
from tests.conftest import COLOURS, draw

PNG = {colour: png_bytes(draw(colour, "disc")) for colour in COLOURS}


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


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
    items = list(source.members(file))
    assert [item.uri.rpartition("/")[2] for item in items] == ["0.tar#1.png", "0.tar#2.png"]
    assert [item.data for item in items] == [PNG["red"], PNG["blue"]]


@pytest.mark.parametrize("shape", ["binary", "struct"])
def test_pictures_of_a_parquet_file(tmp_path: Path, shape: str) -> None:
    data = [PNG[colour] for colour in COLOURS] * 20
    column = data if shape == "binary" else [{"bytes": one, "path": "x"} for one in data]
    name = "jpg" if shape == "binary" else "image"
    pq.write_table(pa.table({"caption": ["x"] * len(data), name: column}), tmp_path / "0.parquet")
    source = Source(str(tmp_path))
    items = list(source.members(next(source.files())))
    assert [item.data for item in items] == data
    assert items[-1].uri.endswith("0.parquet#159")


@pytest.mark.parametrize("name", ["cut.tar", "cut.parquet", "text.parquet", "none.parquet"])
def test_a_damaged_archive_ends_in_a_problem(tmp_path: Path, name: str) -> None:
    if name == "cut.tar":
        write_tar(tmp_path / name, {f"{i}.png": PNG["red"] * 50 for i in range(3)})
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:20_000])
    elif name == "none.parquet":
        pq.write_table(pa.table({"caption": ["x"]}), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(b"PAR1 no more")
    source = Source(str(tmp_path))
    *_, last = source.members(next(source.files()))
    assert last.problem and last.uri.endswith(name)


def test_a_remote_store_is_listed_and_read() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/photos/a/one.png", PNG["red"])
    memory.pipe("/bucket/photos/two.png", PNG["blue"])
    source = Source("memory://bucket/photos")
    assert source.folders() == ["", "a"]
    files = {file.folder: file for file in source.files()}
    assert source.read(files["a"]).data == PNG["red"]
    assert files["a"].uri == "memory:///bucket/photos/a/one.png"
    memory.rm("/bucket", recursive=True)


def test_an_outage_is_no_fault_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/one.png", PNG["red"])
    source, asked = Source("memory://bucket"), []
    (file,) = source.files()

    def cut(path: str) -> bytes:
        asked.append(path)
        return PNG["red"] if len(asked) == 3 else PNG["red"][:10]

    monkeypatch.setattr(source.filesystem, "cat_file", cut)
    assert source.read(file).data == PNG["red"] and len(asked) == 3
    monkeypatch.setattr("clipgen_core.filesystem.ATTEMPTS", 2)
    asked.extend("xx")
    with pytest.raises(
        ClipgenError, match=r"one.png could not be read \(got 10 of .* run raw_images again when"
    ):
        source.read(file)
    memory.rm("/bucket", recursive=True)


def test_a_file_that_is_gone_is_a_problem_and_no_error(tmp_path: Path) -> None:
    item = Source(str(tmp_path)).read(File(str(tmp_path / "gone.png"), "file:///gone.png", "", 1, "x"))
    assert item.problem and "No such file" in item.problem


def test_the_image_column_is_told_by_name_and_type() -> None:
    schema = pa.schema([("image", pa.string()), ("jpg", pa.large_binary())])
    assert sources._image_column(schema) == "jpg"
