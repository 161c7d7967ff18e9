import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipgen_core.data.archives import members
from clipgen_core.data.columns import Columns
from clipgen_core.data.sources import Source
from clipgen_core.errors import ClipgenError
from clipgen_core.settings.images import Config, Wanted
from tests.core.data.test_archives import PNG, parquet, tar

KEPT = Config().columns
BY_IMG2DATASET = {
    "url": "http://x/1.jpg",
    "caption": "a red disc",
    "key": "000000001",
    "status": "success",
    "width": 32,
    "LICENSE": "cc0",
    "AESTHETIC_SCORE": 5.5,
    "exif": "{}",
}
COLUMNS = {"caption": "a red disc", "license": "cc0", "url": "http://x/1.jpg", "score": 5.5}


def kept(name: str, data: bytes, columns: tuple[str, ...] = KEPT) -> dict[str, dict[str, Any]]:
    """The metadata of each image of an archive."""
    found = list(members(name, io.BytesIO(data), Wanted(columns=columns)))
    assert [one.problem for one in found] == [None] * len(found)
    return {one.name: dict(one.columns) for one in found}


def test_a_webdataset_shard_gives_each_image_what_lies_beside_it() -> None:
    record = json.dumps(BY_IMG2DATASET).encode()
    files = [("1.jpg", PNG[0]), ("1.json", record), ("1.txt", b"a red disc"), ("2.jpg", PNG[1])]
    files += [("in/3.cls", b"7"), ("in/3.png", PNG[2]), ("in/3.mask.png", PNG[3]), ("3.txt", b"another")]
    assert kept("a.tar", tar(files)) == {
        "1.jpg": COLUMNS,
        "2.jpg": {},
        "in/3.png": {"label": "7"},
        "in/3.mask.png": {"label": "7"},
    }
    inner = tar([("n.tar", tar(files[:3])), *files[3:4]])
    assert kept("a.tar", inner) == {"n.tar/1.jpg": COLUMNS, "2.jpg": {}}
    assert not any(kept("a.tar", tar(files), columns=()).values())


DOTTED = ("photo.jpg", "photo.1.jpg", "IMG.2023.01.05.jpg", "IMG.2023.01.06.jpg", "Dr. No.jpg", "Dr. Yes.png")


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
@pytest.mark.parametrize("ending", [".json", ".jpg.json"])
def test_names_with_dots_have_the_files_beside_them_and_no_others(
    kind: str, ending: str, tmp_path: Path
) -> None:
    wanted = {name: {"license": f"of {name}"} for name in DOTTED}
    files = {name: PNG[0] for name in DOTTED}
    files |= {
        name.rpartition(".")[0] + (ending if name.endswith(".jpg") else ".json"): json.dumps(said).encode()
        for name, said in wanted.items()
    }
    assert given_by(kind, files, tmp_path) == wanted
    del files["photo.1" + ending]  # there is nothing beside it any more
    mine = given_by(kind, files, tmp_path)
    sample = {} if kind != "tar" or ending != ".json" else wanted["photo.jpg"]  # in a tar, WebDataset's rule
    assert mine == wanted | {"photo.1.jpg": sample}


def given_by(kind: str, files: dict[str, bytes], folder: Path) -> dict[str, dict[str, Any]]:
    """The metadata by the name of the image, of files in a folder or in an archive."""
    ordered = sorted(files.items())
    if kind == "tar":
        return kept("a.tar", tar(ordered))
    if kind == "zip":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, data in ordered:
                archive.writestr(name, data)
        return kept("a.zip", buffer.getvalue())
    here = folder / f"{len(files)}"
    here.mkdir()
    for name, data in ordered:
        (here / name).write_bytes(data)
    source = Source(str(here), Wanted(columns=KEPT))
    read = [item for file in source.files() for item in source.items(file) if item.data]
    return {item.uri.rpartition("/")[2]: dict(item.columns) for item in read}


def test_many_images_whose_names_begin_alike_keep_what_is_theirs() -> None:
    files = [(f"IMG.{number:04}.{kind}", b"") for number in range(200) for kind in ("jpg", "json")]
    files = [
        (name, PNG[0] if name.endswith("jpg") else json.dumps({"license": name}).encode())
        for name, _ in files
    ]
    found = kept("a.tar", tar(files))
    assert len(found) == 200
    assert all(said == {"license": name.replace(".jpg", ".json")} for name, said in found.items())


def test_a_zip_file_whose_members_are_in_any_order() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in {
            "1.txt": b" ",
            "1.png": PNG[0],
            "2.png": PNG[1],
            "1.json": b"{}",
            "2.txt": b"two",
        }.items():
            archive.writestr(name, data)
    assert kept("a.zip", buffer.getvalue()) == {"1.png": {}, "2.png": {"caption": "two"}}


def test_an_archive_that_names_all_images_alike_is_read_in_bounded_memory() -> None:
    names = [f"x.{i}.png" for i in range(200)]
    read = members("a.tar", io.BytesIO(tar([(name, PNG[0]) for name in names])), Wanted(columns=KEPT))
    assert [one.name for one in read] == names


def test_the_columns_of_a_parquet_file() -> None:
    rows = {name: [value, None] for name, value in BY_IMG2DATASET.items()}
    table = pa.table({"jpg": [PNG[0], PNG[1]], "txt": ["another", "two"], **rows})
    assert kept("a.parquet", parquet(table)) == {"0": COLUMNS, "1": {"caption": "two"}}
    chosen = kept("a.parquet", parquet(table), columns=("status", "width_:number", "score:text"))
    assert chosen["0"] == {"status": "success", "score": "5.5"}


def test_hugging_faces_classes_captions_and_records() -> None:
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    table = pa.table(
        {
            "image": [{"bytes": PNG[0], "path": None}],
            "label": [1],
            "caption": [["a dog", "an animal"]],
            "json": [{"url": "http://x", "score": "4"}],
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    assert kept("a.parquet", parquet(table)) == {
        "0": {"label": "dog", "caption": "a dog\nan animal", "url": "http://x", "score": 4.0}
    }


def test_a_folder_of_images_with_files_beside_them(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(PNG[0])
    (tmp_path / "1.json").write_text(json.dumps(BY_IMG2DATASET))
    (tmp_path / "1.txt").write_text("another")
    (tmp_path / "2.png").write_bytes(PNG[1])
    (tmp_path / "2.json").write_text("{damaged")
    (tmp_path / "2.txt").write_bytes(b"two \xff")
    source = Source(str(tmp_path), Wanted(columns=KEPT))
    items = {Path(item.uri).name: item for file in source.files() for item in source.items(file)}
    assert {name: item.columns for name, item in items.items()} == {"1.png": COLUMNS, "2.png": {}}
    assert items["1.png"].unread == ""
    assert items["2.png"].unread.startswith(f"file://{tmp_path}/2.txt (it is no text in UTF-8: 'utf-8' codec")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("a5.\udce4 ", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*KEPT, "TEXT", "cls", "Licence"]), JSON))
def test_whatever_a_record_holds_can_be_stored(record: dict[str, Any]) -> None:
    columns = Columns(Wanted(columns=KEPT))
    schema = pa.schema(columns.fields)
    row = columns.of_record(record)
    assert pa.Table.from_pylist([row], schema=schema).num_rows == 1
    assert columns.of_file("1.json", json.dumps(record).encode()) == row


@pytest.mark.parametrize("name", ["Score", "uri", "a b", "score:int", "", "image"])
def test_names_that_no_column_can_have(name: str) -> None:
    with pytest.raises(ClipgenError, match=f"images.columns names '{name}': write NAME"):
        Config(columns=("url", name))
    with pytest.raises(ClipgenError, match="twice"):
        Config(columns=("url", "url:number"))
