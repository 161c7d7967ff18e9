import base64
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipgen_core.data.archives import is_archive, members
from clipgen_core.data.member import Member
from clipgen_core.data.names import Unique, text_of
from clipgen_core.data.pixels import png_bytes
from clipgen_core.settings.images import Wanted
from tests.conftest import COLOURS, draw

PNG = [png_bytes(draw(colour, "disc")) for colour in COLOURS]


def tar(files: list[tuple[str, bytes]], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, encoding="latin-1") as archive:  # type: ignore[call-overload]
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zipped(files: list[tuple[str, bytes]], encrypted: Sequence[str] = ()) -> bytes:
    """A zip file; the headers of some members say that they are encrypted, which `zipfile` cannot write."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files:
            archive.writestr(name, content)
        starts = [one.header_offset for one in archive.infolist() if one.filename in encrypted]
    data = bytearray(buffer.getvalue())
    for start in starts:
        data[start + 6] |= 1
    at = data.find(b"PK\x01\x02")
    while at >= 0:
        if int.from_bytes(data[at + 42 : at + 46], "little") in starts:
            data[at + 8] |= 1
        at = data.find(b"PK\x01\x02", at + 1)
    return bytes(data)


def parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def read(name: str, data: bytes, **wanted: Any) -> list[Member]:
    return list(members(name, io.BytesIO(data), Wanted(**wanted)))


def images(found: list[Member]) -> dict[str, bytes]:
    assert [one.problem for one in found] == [None] * len(found)
    return {one.name: one.data for one in found}


def test_the_content_of_a_member_decides() -> None:
    data = tar(
        [("1", PNG[0]), ("2.img", PNG[1]), ("3.JFIF", PNG[2]), ("1.json", b"{}"), ("1.txt", b"a disc")]
    )
    assert images(read("a.tar", data)) == {"1": PNG[0], "2.img": PNG[1], "3.JFIF": PNG[2]}


@pytest.mark.parametrize(
    ("ending", "mode"), [("tar.gz", "w:gz"), ("tgz", "w:gz"), ("TAR.XZ", "w:xz"), ("tar.bz2", "w:bz2")]
)
def test_compressed_tars(ending: str, mode: str) -> None:
    assert is_archive(f"a.{ending}")
    assert images(read(f"a.{ending}", tar([("1.png", PNG[0])], mode))) == {"1.png": PNG[0]}


def test_tars_of_tars() -> None:
    inner = tar([("x.png", PNG[0]), ("y.png", PNG[1])])
    found = images(read("train.tar", tar([("n01.tar", inner), ("z.png", PNG[2])])))
    assert found == {"n01.tar/x.png": PNG[0], "n01.tar/y.png": PNG[1], "z.png": PNG[2]}


@pytest.mark.parametrize(
    ("inner", "reason", "said"),
    [
        (b"", "empty", "it has no bytes"),
        (b"abc", "damaged", "truncated header"),
        (b"\x1f\x8b\x08no gzip", "damaged", ""),
    ],
)
def test_a_bad_tar_in_a_tar_loses_no_image_behind_it(inner: bytes, reason: str, said: str) -> None:
    found = read("train.tar", tar([("a.png", PNG[0]), ("n01.tar", inner), ("b.png", PNG[1])]))
    assert [one.name for one in found] == ["a.png", "n01.tar", "b.png"]
    assert found[1].reason == reason and re.search(said, found[1].problem or "")


@pytest.mark.parametrize("outer", ["a.tar", "a.zip"])
@pytest.mark.parametrize("inner", ["in.zip", "in.parquet", "in.tar.gz"])
def test_an_archive_in_another_is_read_or_said(outer: str, inner: str) -> None:
    packed = zipped([("x.png", PNG[0])]) if inner == "in.zip" else tar([("x.png", PNG[0])], "w:gz")
    files = [("a.png", PNG[1]), (inner, packed), ("b.png", PNG[2])]
    found = read(outer, tar(files) if outer == "a.tar" else zipped(files))
    if (outer, inner) == ("a.tar", "in.tar.gz"):
        assert images(found) == {"a.png": PNG[1], f"{inner}/x.png": PNG[0], "b.png": PNG[2]}
        return
    assert sorted(one.name for one in found) == ["a.png", "b.png", inner]
    (said,) = [one for one in found if one.problem]
    assert said.name == inner and said.reason == "unsupported" and "unpack it" in str(said.problem)


def test_names_in_an_archive_are_unique_and_text() -> None:
    data = tar([("b\xe4r.png", PNG[0]), ("a.png", PNG[1]), ("a.png", PNG[2]), ("a.png~2", PNG[3])])
    found = images(read("a.tar", data))
    assert list(found.values()) == PNG[:4] and list(found)[1:] == ["a.png", "a.png~2", "a.png~2~2"]
    assert all(name.encode() for name in found)


@given(st.lists(st.text(st.characters(exclude_categories=()), max_size=4)))
def test_names_are_made_unique_and_can_be_encoded(names: list[str]) -> None:
    unique = Unique()
    made = [unique.name(name) for name in names]
    assert len(set(made)) == len(names)
    for name, one in zip(names, made, strict=True):
        assert one.encode().decode().startswith(text_of(name))


def test_the_key_chooses_among_the_images_of_a_sample() -> None:
    data = tar([("1.jpg", PNG[0]), ("1.mask.png", PNG[1]), ("2.jpg", PNG[2]), ("2.mask.png", PNG[3])])
    assert list(images(read("a.tar", data, key="jpg"))) == ["1.jpg", "2.jpg"]
    assert list(images(read("a.tar", data, key="mask.png"))) == ["1.mask.png", "2.mask.png"]


def test_damage_in_the_middle_of_a_tar_loses_one_member() -> None:
    data = bytearray(tar([(f"{i}.png", PNG[i]) for i in range(5)]))
    start = data.index(b"2.png")
    data[start : start + 512] = b"x" * 512
    found = read("a.tar", bytes(data))
    assert [one.name for one in found if one.data] == ["0.png", "1.png", "3.png", "4.png"]
    assert found[-1].problem and found[-1].lost == 0


@pytest.mark.parametrize("end", [-1024, -700, 2000])
def test_a_tar_that_was_cut_is_said_wherever_it_was_cut(end: int) -> None:
    whole = tar([(f"{i}.png", PNG[i]) for i in range(5)]).rstrip(b"\0")
    whole += bytes(-len(whole) % 512)
    found = read("a.tar", whole[:end] if end > 0 else whole)
    assert found[-1].problem and "cut short" in found[-1].problem


def test_a_zip_file_with_one_bad_member() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for i in range(3):
            archive.writestr(f"in/{i}.png", PNG[i])
        archive.writestr("in/labels.csv", "a,b")
    data = bytearray(buffer.getvalue())
    data[data.index(PNG[1]) + 20] ^= 255
    found = read("a.zip", bytes(data))
    assert [one.name for one in found] == ["in/0.png", "in/1.png", "in/2.png"]
    assert found[1].problem and found[2].data == PNG[2]
    assert read("a.zip", b"PK no zip")[0].problem


@pytest.mark.parametrize("size", [0, 4, 21, 22])
def test_a_zip_file_on_a_disk_that_is_shorter_than_its_end_is_damaged(size: int, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(bytes(size))
    with (tmp_path / "a.zip").open("rb") as file:
        (found,) = list(members("a.zip", file, Wanted()))
    assert found.problem and found.lost == 0 and found.reason == ("damaged" if size else "empty")


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip", "a.parquet"])
def test_a_file_without_bytes_is_empty(name: str) -> None:
    (found,) = read(name, b"")
    assert (found.reason, found.problem, found.lost) == ("empty", "it has no bytes", 0)


def test_an_empty_archive_holds_no_image() -> None:
    assert read("a.tar", tar([])) == read("a.tgz", tar([], "w:gz")) == read("a.zip", zipped([])) == []


@pytest.mark.parametrize("name", ["a.zip", "a.parquet"])
def test_a_zip_or_parquet_file_that_was_cut_is_said(name: str) -> None:
    whole = zipped([("1.png", PNG[0])]) if name == "a.zip" else parquet(pa.table({"image": [PNG[0]]}))
    for end in (-1, -30, 40):
        (found,) = read(name, whole[:end])
        assert (found.reason, found.problem) == ("damaged", "it has no end, so it was cut short")


def test_hidden_members_and_those_of_macos_are_left_out() -> None:
    hidden = ["__MACOSX/in/._a.png", "in/._a.png", ".cache/a.png", "in/.git/a.png", ".a.png"]
    files = [(name, PNG[0]) for name in hidden] + [("./in/a.png", PNG[1])]
    for name, data in (("a.tar", tar(files)), ("a.zip", zipped(files))):
        assert images(read(name, data)) == {"./in/a.png": PNG[1]}


def test_encrypted_members_of_a_zip_file_are_one_problem() -> None:
    files = [("1.png", PNG[0]), ("1.txt", b"a disc"), ("2.png", PNG[1]), ("3.png", PNG[2])]
    (found,) = read("a.zip", zipped(files, encrypted=[name for name, _ in files]))
    assert (found.name, found.reason, found.lost) == ("", "unsupported", 3)
    assert found.problem == "it is encrypted: unpack it"
    some = read("a.zip", zipped(files, encrypted=["1.txt", "2.png"]))
    assert [(one.name, one.lost) for one in some] == [("", 1), ("1.png", 1), ("3.png", 1)]
    assert list(images(read("a.zip", zipped(files, encrypted=["1.txt"])))) == ["1.png", "2.png", "3.png"]


def test_a_large_member_is_not_read() -> None:
    (member,) = read("a.tar", tar([("1.png", PNG[0])]), max_bytes=10)
    assert member.reason == "too_large" and not member.data


def test_each_row_has_its_own_column() -> None:
    table = pa.table({"jpg": [PNG[0], None, PNG[2]], "png": [None, PNG[1], PNG[3]]})
    found = images(read("a.parquet", parquet(table)))
    assert found == {"0.jpg": PNG[0], "1.png": PNG[1], "2.jpg": PNG[2], "2.png": PNG[3]}
    chosen = read("a.parquet", parquet(table), key="png")
    assert [(one.name, one.reason if one.problem else "") for one in chosen] == [
        ("1", ""),
        ("2", ""),
    ]


@pytest.mark.parametrize(
    ("kind", "null", "nothing"),
    [
        (pa.binary(), None, b""),
        (pa.list_(pa.binary()), [None], [b""]),
        (
            pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            {"bytes": None, "path": None},
            {"bytes": b"", "path": None},
        ),
    ],
)
def test_rows_of_null_are_no_images_and_rows_without_bytes_are_empty(
    kind: pa.DataType, null: Any, nothing: Any
) -> None:
    found = read("a.parquet", parquet(pa.table({"image": pa.array([None, null, nothing], kind)})))
    assert [(one.name, one.reason) for one in found] == [("2", "empty")]


def test_hugging_faces_metadata_names_the_column() -> None:
    features = {"info": {"features": {"shot": {"_type": "Image"}, "label": {"_type": "Value"}}}}
    table = pa.table({"label": [b"x"], "shot": [{"bytes": PNG[0], "path": None}]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    assert images(read("a.parquet", parquet(table))) == {"0": PNG[0]}


@pytest.mark.parametrize("name", ["img", "jpg_0", "a_column_like_no_other"])
def test_columns_are_told_by_name_or_by_content(name: str) -> None:
    other = [{"url": "http://x", "w": 3}]
    table = pa.table({"image": other, "hash": [b"12345678"], name: [PNG[0]]})
    assert images(read("a.parquet", parquet(table))) == {"0": PNG[0]}


def test_lists_of_images() -> None:
    table = pa.table({"images": [[PNG[0], PNG[1]], [PNG[2]]]})
    assert list(images(read("a.parquet", parquet(table)))) == ["0.0", "0.1", "1"]


def test_rows_without_bytes_are_said() -> None:
    table = pa.table(
        {
            "image": pa.array(
                [{"bytes": None, "path": "/data/x.png"}],
                pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            )
        }
    )
    (member,) = read("a.parquet", parquet(table))
    assert member.reason == "empty" and "names the file /data/x.png" in (member.problem or "")


def test_a_parquet_file_of_texts_that_stand_for_images_says_so() -> None:
    text = base64.b64encode(PNG[0]).decode()
    for values, said in (
        ([None, "https://example.com/a.png"], "holds addresses of images instead of their bytes: download"),
        ([text, text], "holds images as base64: store their bytes"),
        ([f"data:image/png;base64,{text}", ""], "holds images as base64"),
    ):
        (member,) = read("a.parquet", parquet(pa.table({"caption": ["x", "y"], "image": values})))
        assert member.lost == 2 and f"the column 'image' {said}" in str(member.problem)
    assert read("a.parquet", parquet(pa.table({"image": ["a.png", "photo"]}))) == []


def test_a_parquet_file_without_images_is_nothing_or_all_of_its_rows() -> None:
    assert read("a.parquet", parquet(pa.table({"caption": ["x"], "url": ["y"]}))) == []
    (member,) = read("a.parquet", parquet(pa.table({"blob": [b"12345"] * 7})))
    assert member.lost == 7 and "set images.key to one of blob" in (member.problem or "")
    (member,) = read("a.parquet", parquet(pa.table({"jpg": [PNG[0]] * 3})), key="png")
    assert member.lost == 3
