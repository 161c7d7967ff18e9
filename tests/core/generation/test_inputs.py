"""What the methods of a generator take, besides requests for images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipgen_core.errors import ClipgenError
from clipgen_core.generation.generator import TextToImage
from tests.conftest import draw


@pytest.fixture(scope="module")
def generator(checkpoint: str) -> TextToImage:
    return TextToImage.from_pretrained(checkpoint)


def test_what_takes_several_takes_one(generator: TextToImage) -> None:
    image, texts = draw("red", "disc"), generator.embed_text("a heart")
    assert texts.shape[0] == 1 and (texts == generator.embed_text(["a heart"])).all()
    embedded = generator.embed_images(image)
    assert (embedded == generator.embed_images([image])).all()
    assert generator.dropped_tokens("a red disc") == [0]
    by_text = [generator.search(query, 2) for query in ("a heart", texts, texts[0], texts[0].tolist())]
    assert all(found == by_text[0] for found in by_text)
    assert generator.search(image, 2) == generator.search(embedded, 2)


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("embed_text", ([""],), "a prompt is empty: say what"),
        ("embed_text", ("",), "a prompt is empty: say what"),
        ("dropped_tokens", (None,), "the prompts are of type NoneType"),
        ("embed_images", (["x.png"],), "an image is of type str: give a PIL image"),
        ("embed_images", (Image.new("RGB", (0, 0)),), "an image has 0x0 pixels"),
        ("variations", (Image.new("RGB", (0, 5)),), "an image has 0x5 pixels"),
        ("search", ("", 2), "a prompt is empty"),
        (
            "search",
            (["a", "b"], 2),
            "type list: give one prompt, one PIL image, or one embedding of 32 numbers",
        ),
        ("search", (np.ones(5), 2), "one embedding of 32 numbers"),
        ("search", (np.full(32, np.nan), 2), "one embedding of 32 numbers"),
        ("search", (None, 2), "type NoneType: give one prompt"),
        ("search", ("a heart", 0), "k is 0: give the number of images"),
        ("search", ("a heart", 1.5), "k is 1.5: give an integer"),
        ("save_pretrained", (None,), "the folder is of type NoneType: give its path as a text"),
        ("from_pretrained", (None,), "the model is of type NoneType: give its folder or name"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    generator: TextToImage, method: str, given: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(ClipgenError, match=message):
        getattr(generator, method)(*given)


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("__call__", {"negative_prompt": "blurry"}, "no argument 'negative_prompt': models have no negative"),
        (
            "__call__",
            {"height": 512},
            "no argument 'height': images have the side that the model was trained",
        ),
        (
            "generate",
            {"num_inference_steps": 9},
            "generate has no argument 'num_inference_steps': give steps",
        ),
        ("generate", {"guidance": 3.0}, "no argument 'guidance': did you mean 'guidance_scale'"),
        ("variations", {"eta": 0.5}, "no argument 'eta': choose images, n, seed, strength"),
    ],
)
def test_an_argument_of_other_pipelines_is_answered_with_ours(
    generator: TextToImage, method: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ClipgenError, match=message):
        getattr(generator, method)("a heart", **given)


def test_a_generator_is_saved_where_nothing_is_lost(
    generator: TextToImage, any_order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "saved"
    generator.save_pretrained(str(folder))
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    loaded = TextToImage.from_pretrained(folder)
    for one in (generator, loaded):
        one.save_pretrained(folder)  # the same again
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before
    with pytest.raises(ClipgenError, match="saved holds other files: choose a new folder"):
        TextToImage.from_pretrained(any_order).save_pretrained(folder)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ClipgenError, match="file is a file: choose a new folder"):
        generator.save_pretrained(tmp_path / "file")
    with pytest.raises(ClipgenError, match="cannot be written to .*Not a directory.*: mend that"):
        generator.save_pretrained(tmp_path / "file" / "below")
