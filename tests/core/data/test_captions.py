from pathlib import Path

from clipgen_core.data.captions import combined, read_captions


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
