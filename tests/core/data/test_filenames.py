from pathlib import Path

import pytest
from PIL import Image

from clipgen_core.data.captions import read_captions, require_captioned
from clipgen_core.data.filenames import captions_of_names, words_of
from clipgen_core.data.prompts import read_prompts
from clipgen_core.errors import ClipgenError


def folder_of(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / file)
    return root


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("tulips/red-macro-01.jpg", ["red", "macro", "tulips"]),
        ("RedShoe.png", ["red", "shoe"]),
        ("daisy/5547758_eea9edfd54_n.jpg", ["daisy"]),
        ("tulip/16568481088_dfcfccefea_n.jpg", ["tulip"]),
        ("daisy/123456bcfe.jpg", ["daisy"]),
        ("DCIM/IMG_0012.JPG", []),
        ("n01440764/n01440764_10026.jpg", []),
        ("a/b/Straße 7.webp", ["straße"]),
        ("花/薔薇 赤_01.jpg", ["薔薇", "赤", "花"]),
        ("x/550e8400-e29b-41d4-a716-446655440000.png", []),
    ],
)
def test_the_words_of_a_name(file: str, words: list[str]) -> None:
    assert words_of(file) == words


def test_names_are_captions_and_prompts(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "cats/shop-1.png", "cats/shop-2.png", "dogs/shop-3.png", "dogs/old_shop.png")
    (folder / "notes.txt").write_text("no image")
    captions = {"cats/shop-1.png": "cats", "cats/shop-2.png": "cats", "dogs/shop-3.png": "dogs"}
    assert captions_of_names(str(folder)) == captions | {"dogs/old_shop.png": "old dogs"}
    names = f"names:{folder}"
    read = read_captions(names)
    assert read["dogs/shop-3.png"] == ["dogs"]
    require_captioned(names, read)
    prompts = {prompt.text: prompt.file for prompt in read_prompts(names)}
    assert prompts == {
        "cats": f"{folder}/cats/shop-1.png",
        "dogs": f"{folder}/dogs/shop-3.png",
        "old dogs": f"{folder}/dogs/old_shop.png",
    }


def test_names_that_say_nothing_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "IMG_1.png", "IMG_2.png", "red.png", "blue.png", "DSC3.png")
    with pytest.raises(ClipgenError, match="do not say what the images show: give a captions file"):
        read_captions(f"names:{folder}")
