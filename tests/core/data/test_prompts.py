import json
from pathlib import Path

import pytest

from clipgen_core.data.prompts import read_captions, read_prompts, read_texts
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


def test_captions_are_gathered_by_image(tmp_path: Path) -> None:
    file = tmp_path / "captions.csv"
    file.write_text("file,caption\na.png,a disc\nb.png,a square\na.png,round\n")
    assert read_captions(str(file)) == {"a.png": ["a disc", "round"], "b.png": ["a square"]}


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
