import json
from pathlib import Path

import pytest

from clipgen_core.data.captions import read_captions
from clipgen_core.data.prompts import read_prompts, read_texts, relative, require_files
from clipgen_core.errors import ClipgenError


def test_prompts_with_their_pictures_and_splits(tmp_path: Path) -> None:
    file = tmp_path / "prompts.csv"
    file.write_text("prompt,split,file\na disc,train,discs/1.png\n,train,\na square,,\n")
    disc, square = read_prompts(str(file))
    assert (disc.text, disc.split, disc.file) == ("a disc", "train", f"{tmp_path}/discs/1.png")
    assert (square.text, square.split, square.file) == ("a square", "all", None)


def test_prompts_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a disc\n\n a square, blue \n")
    assert [(one.text, one.file) for one in read_prompts(str(file))] == [
        ("a disc", None),
        ("a square, blue", None),
    ]


def test_coco_captions_with_and_without_their_images(tmp_path: Path) -> None:
    file = tmp_path / "captions_val2017.json"
    images = [{"id": 7, "file_name": "7.jpg"}, {"id": 9, "file_name": "9.jpg"}]
    notes = [
        {"image_id": 9, "caption": "A cat. "},
        {"image_id": 7, "caption": "A dog."},
        {"image_id": 9, "caption": "Asleep."},
    ]
    file.write_text(json.dumps({"images": images, "annotations": notes}))
    assert [one.file for one in read_prompts(str(file))] == [None] * 3
    read = read_prompts(str(file), "/data/val2017")
    assert [(one.text, one.file) for one in read] == [
        ("A cat.", "/data/val2017/9.jpg"),
        ("A dog.", "/data/val2017/7.jpg"),
        ("Asleep.", "/data/val2017/9.jpg"),
    ]
    for broken in ("{", '{"images": []}', '{"images": [], "annotations": [{"image_id": 1, "caption": "x"}]}'):
        file.write_text(broken)
        with pytest.raises(ClipgenError, match="is no COCO captions file"):
            read_prompts(str(file))


@pytest.mark.parametrize(
    ("data", "captions"),
    [
        (b"\xef\xbb\xbffile,caption\na.png,a caf\xc3\xa9\nb.png,b\n", "a café"),
        (b"file;caption\r\na.png;a disc, red\r\n;\r\nb.png;b\r\n", "a disc, red"),
        (b"file\tcaption\r\na.png\ta disc; red\r\nb.png\tb\r\n", "a disc; red"),
        ("file\tcaption\na.png\ta café\nb.png\tb\n".encode("utf-16"), "a café"),
        (b'"file";" caption"\r\n"a.png";"a ""red""\r\ndisc"\r\nb.png;b;;\r\n', 'a "red"\r\ndisc'),
        (b"file,caption\ra.png,a disc\rb.png,b\r", "a disc"),
    ],
    ids=["mark", "semicolons", "tabs", "utf-16", "quotes", "old line ends"],
)
def test_a_csv_file_as_excel_saves_it(tmp_path: Path, data: bytes, captions: str) -> None:
    file = tmp_path / "captions.csv"
    file.write_bytes(data)
    assert read_captions(str(file)) == {"a.png": [captions], "b.png": ["b"]}
    for coding in ("utf-8", "utf-16-le"):
        data = data.replace("caption".encode(coding), "prompt".encode(coding))
    file.write_bytes(data)
    assert [(one.text, one.file) for one in read_prompts(str(file))] == [
        (captions, f"{tmp_path}/a.png"),
        ("b", f"{tmp_path}/b.png"),
    ]


def test_other_files_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xef\xbb\xbfa disc\r\na square\r\n")
    assert [one.text for one in read_prompts(str(file))] == ["a disc", "a square"] == read_texts(str(file))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"file,caption\na.png,a\nb.png\n", "has 1 fields in line 3, and 2 in its header"),
        (b"file,caption\na.png,a disc, red\nb.png,b\n", "has 3 fields in line 2, and 2 in its header"),
        (b"file,caption\na.png,a\n\nb.png,\n", "has no caption in line 4"),
        (b"file,caption\na.png,a\n ,b\n", "has no file in line 3"),
        (b"file,caption\na.png,a\nb.png,a caf\xe9\n", r"not encoded in UTF-8 \(line 3\): save it as"),
        (b'file,caption\na.png,a\nb.png,"a disc\nc.png,c\n', "cannot be read from line 4 on"),
    ],
)
def test_a_broken_row_is_named_by_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "captions.csv"
    file.write_bytes(content)
    with pytest.raises(ClipgenError, match=message):
        read_captions(str(file))


def test_whole_paths_inside_the_folder_are_read_as_relative_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "captions.csv"
    file.write_text(f"file,caption,prompt\n{tmp_path}/a.png,a,a\nb.png,b,b\n")
    monkeypatch.chdir(tmp_path)
    for url in (str(file), f"file://{file}", "captions.csv", "./captions.csv"):
        assert list(read_captions(url)) == ["a.png", "b.png"]
        assert read_prompts(url)[0].file == f"{url.rpartition('/')[0] or '.'}/a.png"
    assert relative("s3://bucket/sets", "s3://bucket/sets/x/a.png") == "x/a.png"
    file.write_text(f"file,caption,prompt\n{tmp_path}-other/a.png,a,a\nb.png,b,b\n")
    with pytest.raises(ClipgenError, match="leaves the folder"):
        read_prompts(str(file))


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    require_files("prompts file p.csv", [f"{tmp_path}/a.png", f"file://{tmp_path}/a.png"])
    with pytest.raises(ClipgenError, match="1 of 2 files that prompts file p.csv names .*/c.png: check"):
        require_files("prompts file p.csv", [f"{tmp_path}/a.png", f"file://{tmp_path}/c.png"])


def test_texts_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("a disc\n\n  a square \n")
    assert read_texts(str(file)) == ["a disc", "a square"]


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (read_prompts, None, "prompts file .* does not exist"),
        (read_prompts, "text\nhello", "needs the column prompt: add a header"),
        (read_prompts, "prompt\n", "holds no prompt"),
        (read_prompts, "prompt,file\nx,../secret.png\n", "leaves the folder"),
        (read_captions, "file\na.png\n", "needs the columns file and caption"),
        (read_captions, "file,caption\na.png,a\n", "names 1 images: at least 2"),
        (read_texts, None, "texts file .* does not exist"),
        (read_texts, "a disc\n", "holds 1 texts: at least 2"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, read, content: str | None, message: str) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "given.csv"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ClipgenError, match=message):
        read(str(file))
