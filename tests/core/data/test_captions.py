from pathlib import Path

import pytest

from clipgen_core.data.captions import Captioned, combined, read_captioned, read_captions
from clipgen_core.errors import ClipgenError


def test_captions_are_gathered_by_image(tmp_path: Path) -> None:
    file = tmp_path / "captions.csv"
    file.write_text("file,caption\na.png,a disc\nb.png,a square\na.png,round\n")
    assert read_captions(str(file)) == {"a.png": ["a disc", "round"], "b.png": ["a square"]}


def test_keywords_are_joined_with_each_other_and_with_the_first_caption(tmp_path: Path) -> None:
    file = tmp_path / "captions.csv"
    file.write_text(
        'file,caption,keywords\na.png,red disc,"round, RED,, warm"\na.png,a disc,flat\nb.png,b,\n'
    )
    read = read_captions(str(file))
    assert read["a.png"][:2] == ["red disc", "a disc"] and read["b.png"] == ["b"]
    made = read["a.png"][2:]
    assert made == combined("a.png", ["red disc", "a disc"], ["round", "RED", "warm", "flat"])
    assert len(made) >= 3 and any("red disc" in text for text in made)
    left = {text.replace("red disc", "").strip() for text in made}
    assert all(set(text.split()) <= {"round", "warm", "flat"} and text for text in left)


def test_an_image_without_keywords_that_its_caption_lacks_has_its_own_captions_alone() -> None:
    assert combined("a.png", ["a red disc"], ["red", "Disc"]) == [] == combined("a.png", ["a disc"], [])


def test_headers_in_capitals_and_excels_first_line(tmp_path: Path) -> None:
    file = tmp_path / "captions.csv"
    file.write_text("sep=;\nFile;Caption;Keywords\na.png;a disc;round\nb.png;b;c;d\n")
    with pytest.raises(ClipgenError, match="has 4 fields in line 4"):
        read_captions(str(file))
    file.write_text("sep=;\nFile;Caption;Keywords\na.png;a disc;round\nb.png;b\n")
    read = read_captioned(str(file))
    assert read["a.png"] == Captioned(["a disc"], ["round"]) and read["b.png"] == Captioned(["b"], [])
    file.write_text("file,caption,caption\na.png,a,b\nb.png,b,c\n")
    with pytest.raises(ClipgenError, match="has the column caption twice"):
        read_captions(str(file))
