from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipgen_core.errors import ClipgenError
from clipgen_core.generation import editing
from clipgen_core.generation.generator import TextToImage
from clipgen_core.models.layout import NONE
from tests.conftest import SIZE, blocks, draw

REPOSITORY = Path(__file__).parents[3]
GRID = 4
CELL = SIZE // GRID
SETTINGS = {"candidates": 2, "steps": 3}


@pytest.fixture(scope="module")
def raster(checkpoint: str) -> TextToImage:
    return TextToImage.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def generator(any_order: str) -> TextToImage:
    return TextToImage.from_pretrained(any_order)


def test_a_saved_generator_says_its_order(
    raster: TextToImage, generator: TextToImage, tmp_path: Path
) -> None:
    generator.save_pretrained(tmp_path)
    saved = TextToImage.from_pretrained(str(tmp_path))
    assert (raster.parts.order, saved.parts.order) == ("raster", "any")
    (one,), (other,) = (each.generate("a red disc", steps=4)[0] for each in (generator, saved))
    assert one.tobytes() == other.tobytes()


def test_the_documented_code_edits(
    generator: TextToImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = (one for one in blocks(REPOSITORY / "docs" / "serving.md", "python") if "edit(" in one)
    draw("red", "disc").save(tmp_path / "photo.png")
    mask((0, 0, 9, 9)).save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {"generator": generator}
    exec(code, made)
    assert [made[name].size for name in ("edited", "wider", "close")] == [(32, 32), (96, 32), (32, 32)]


def mask(box: tuple[int, int, int, int], size: tuple[int, int] = (SIZE, SIZE)) -> Image.Image:
    made = Image.new("L", size)
    made.paste(255, box)
    return made


def test_codes_and_pixels_outside_of_the_mask_stay(generator: TextToImage) -> None:
    image, marked = draw("red", "disc"), mask((3, 9, 15, 15))
    made = generator.edit(image, marked, "a blue square", n=3, seed=1, **SETTINGS)
    codes = editing.encode(generator.vqgan, image).cpu().numpy()
    changes = np.zeros((GRID, GRID), dtype=bool)
    changes[1, :2] = True
    inside = np.kron(changes, np.ones((CELL, CELL), dtype=bool))
    assert len(made) == 3
    for one in made:
        assert (one.codes[~changes] == codes[~changes]).all()
        assert (np.asarray(one.image)[~inside] == np.asarray(image)[~inside]).all()
    assert any((one.codes != codes).any() for one in made)
    assert [one.clip_score for one in made] == sorted((one.clip_score for one in made), reverse=True)
    again = generator.edit(image, np.asarray(marked) > 0, "a blue square", n=3, seed=1, **SETTINGS)
    assert all((a.codes == b.codes).all() for a, b in zip(made, again, strict=True))


def test_the_middle_of_a_large_image_is_edited_and_a_thin_stroke_counts(generator: TextToImage) -> None:
    image = draw("green", "cross", 8 * SIZE).resize((12 * SIZE, 8 * SIZE))
    stroke = mask((2 * SIZE, 0, 2 * SIZE + 6, 8 * SIZE), image.size)  # at the left end of the square
    kept = editing.outside(generator.vqgan, image, stroke)
    assert kept.image.size == (SIZE, SIZE)
    assert (kept.codes == NONE).nonzero()[:, 1].tolist() == [0] * GRID


def test_a_mask_that_does_not_fit_is_one_sentence(generator: TextToImage, raster: TextToImage) -> None:
    image = draw("red", "disc")
    with pytest.raises(ClipgenError, match="the mask has 16x16 pixels, the image 32x32"):
        generator.edit(image, mask((0, 0, 4, 4), (16, 16)))
    with pytest.raises(ClipgenError, match="marks nothing"):
        generator.edit(image, mask((0, 0, 0, 0)))
    with pytest.raises(ClipgenError, match="the mask is no image"):
        generator.edit(image, np.zeros((32, 32, 3)))
    with pytest.raises(ClipgenError, match="an image is of type str"):
        generator.edit("image.png", mask((0, 0, 4, 4)))  # type: ignore[arg-type]
    marked = mask((0, 0, 4, 4))
    with pytest.raises(ClipgenError, match="2 prompts are given: give one, and call again for each other"):
        generator.edit(image, marked, ["a", "b"])  # type: ignore[arg-type]
    with pytest.raises(ClipgenError, match="2 images are given: give one"):
        generator.extend([image, image], left=4)  # type: ignore[arg-type]
    with pytest.raises(ClipgenError, match="an image has 0x0 pixels: give one with some"):
        generator.edit(Image.new("RGB", (0, 0)), marked)
    with pytest.raises(ClipgenError, match="the mask is no image"):
        generator.edit(image, np.full((SIZE, SIZE), "white"))
    assert generator.edit([image], marked, ["a disc"], steps=1)  # type: ignore[arg-type]
    with pytest.raises(ClipgenError, match="editing needs one that was trained with transformer.model.order"):
        raster.edit(image, mask((0, 0, 4, 4)))
    (whole,) = raster.edit(image, mask((0, 0, SIZE, SIZE)), "a red disc")  # nothing stays
    assert whole.image.size == (SIZE, SIZE)


@pytest.mark.parametrize(("grey", "counts"), [(31, False), (32, True), (127, True)])
def test_a_grey_of_32_counts_as_white(generator: TextToImage, grey: int, counts: bool) -> None:
    image, marked = draw("red", "disc"), Image.new("L", (SIZE, SIZE), grey)
    if counts:
        assert (editing.outside(generator.vqgan, image, marked).codes == NONE).all()
    else:
        with pytest.raises(ClipgenError, match="marks nothing"):
            editing.outside(generator.vqgan, image, marked)


@pytest.mark.parametrize("margins", [{"left": SIZE}, {"right": 5, "bottom": 3 * SIZE}])
def test_an_image_is_extended_around_itself(generator: TextToImage, margins: dict[str, int]) -> None:
    image = draw("blue", "square")
    made = generator.extend(image, "a blue square", n=2, **margins, **SETTINGS)
    left, right, bottom = (-(-margins.get(side, 0) // CELL) * CELL for side in ("left", "right", "bottom"))
    for one in made:
        assert one.image.size == (SIZE + left + right, SIZE + bottom)
        assert one.codes.shape == (one.image.height // CELL, one.image.width // CELL) and one.codes.min() >= 0
        there = one.image.crop((left, 0, left + SIZE, SIZE))
        assert (np.asarray(there) == np.asarray(image)).all()
    assert not (made[0].codes == made[1].codes).all()


def test_margins_that_do_not_fit_are_one_sentence(generator: TextToImage) -> None:
    image = draw("blue", "square")
    for margins, said in (
        ({}, "no pixels are to be added: give their number at one side"),
        ({"left": -8, "right": 16}, "left is -8: give the pixels to add at that side, 0 or more"),
        ({"left": 1.5}, "left is 1.5: give an integer"),
    ):
        with pytest.raises(ClipgenError, match=said):
            generator.extend(image, **margins)  # type: ignore[arg-type]
    with pytest.raises(ClipgenError, match="more than 128 pixels a side"):
        generator.extend(image, left=2 * SIZE, right=SIZE + 1)


def test_strength_is_the_share_of_codes_that_change(generator: TextToImage, raster: TextToImage) -> None:
    images = [draw("red", "disc"), draw("gold", "cross")]
    codes = [editing.encode(generator.vqgan, image).cpu().numpy() for image in images]
    for row, before in zip(generator.variations(images, n=2, strength=0.25, **SETTINGS), codes, strict=True):
        assert all(0 <= (one.codes != before).sum() <= GRID for one in row)
    for strength in (0, 1.1, float("nan"), 10**400, "half"):
        with pytest.raises(ClipgenError, match="strength is"):
            generator.variations(images, strength=strength)  # type: ignore[arg-type]
    with pytest.raises(ClipgenError, match="editing needs one"):
        raster.variations(images, strength=0.5)


@given(st.integers(4, 12), st.integers(4, 12), st.data())
def test_windows_fill_all_that_is_unknown(height: int, width: int, data: st.DataObject) -> None:
    top, left = data.draw(st.integers(0, height - 4)), data.draw(st.integers(0, width - 4))
    known = np.zeros((height, width), dtype=bool)
    known[top : top + 4, left : left + 4] = True
    filled = known.copy()
    for square in editing.windows(known, 4):
        assert filled[square].shape == (4, 4) and not filled[square].all() and filled[square].sum() >= 4
        filled[square] = True
    assert filled.all()


def test_the_new_part_fades_in_inside_of_itself() -> None:
    codes = torch.zeros(4, 4, dtype=torch.long)
    codes[:, 2:] = NONE
    kept = editing.Kept(Image.new("RGB", (32, 32)), codes)
    row = np.asarray(kept.join(Image.new("RGB", (32, 32), "white")))[16, :, 0]
    assert (row[:16] == 0).all() and (row[22:] == 255).all()
    assert (np.diff(row.astype(int)) >= 0).all() and 0 < row[16] < 255
