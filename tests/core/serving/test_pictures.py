"""What the page takes and shows, without a browser: uploads, settings, names of files."""

import base64
import io
import json
import socket
import zipfile

import numpy as np
import pytest
from PIL import Image, ImageDraw

from clipgen_core.data.pixels import with_parameters
from clipgen_core.errors import ClipgenError
from clipgen_core.serving.answers import LARGEST_SEED, Chosen
from clipgen_core.serving.page import serve
from clipgen_core.serving.pictures import file_name, group, picture, training_picture
from clipgen_core.serving.subjects import Edit, FromPicture, FromText


def file(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def disc() -> Image.Image:
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((12, 12, 52, 52), fill="red")
    return image


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "AVIF"])
def test_a_transparent_disc_is_a_disc_on_white(kind: str) -> None:
    read = np.asarray(FromPicture(file(disc(), kind)).picture).astype(int)
    assert (read[0, 0] > 250).all() and read[32, 32, 0] > 240 and read[32, 32, 1] < 20


@pytest.mark.parametrize(
    "data", [b"\x89PNG\r\n\x1a\n", b"no image", file(Image.new("1", (12_000, 12_000)))], ids=len
)
def test_an_upload_that_cannot_be_used_is_one_sentence(data: bytes) -> None:
    with pytest.raises(ClipgenError, match=r"the picture cannot be used \(.*\): send another file"):
        FromPicture(data)


def test_paint_is_where_a_layer_is_not_transparent() -> None:
    whole = file(Image.new("RGB", (64, 64), "blue"))
    asked = Edit({"background": whole, "layers": [file(disc())]}, "a red disc")
    assert asked.painted[32, 32] and not asked.painted[0, 0]
    with pytest.raises(ClipgenError, match="another size"):
        Edit({"background": file(Image.new("RGB", (8, 8))), "layers": [file(disc())]}, "")
    with pytest.raises(ClipgenError, match="Paint over"):
        Edit({"background": whole, "layers": []}, "")


@pytest.mark.parametrize(
    ("n", "seed", "sentence"),
    [
        (4, None, "Seed is empty: enter a number."),
        (None, 0, "Pictures is empty"),
        (4, -1, "Seed is -1: enter an integer from 0 to"),
        (4, 1e30, r"Seed is 1e\+30: enter an integer"),
        (4, 0.5, "Seed is 0.5: enter an integer"),
        (4, float("nan"), "Seed is nan: enter an integer"),
    ],
)
def test_settings_that_cannot_be_used_are_a_sentence(
    n: float | None, seed: float | None, sentence: str
) -> None:
    with pytest.raises(ClipgenError, match=sentence):
        _ = Chosen("one", n, seed, 2.0, 0.9, "").parameters


def test_settings_are_what_the_generator_takes() -> None:
    chosen = Chosen("one", 4.0, LARGEST_SEED, 2.0, 0.9, "two")
    assert chosen.models == ["one", "two"] and Chosen("one", 1, 0, 1, 1, "one").models == ["one"]
    assert chosen.parameters == {"n": 4, "seed": LARGEST_SEED, "guidance_scale": 2.0, "temperature": 0.9}


def test_a_prompt_of_spaces_is_none() -> None:
    with pytest.raises(ClipgenError, match="Enter a prompt first"):
        FromText("  ")


def test_a_saved_picture_is_named_by_what_it_shows_and_holds_its_parameters() -> None:
    name = file_name("../A “red” heart/€", 5, 2)
    assert name == "a-red-heart-seed-5-2.png" and file_name("/", 0, 1) == "picture-seed-0-1.png"
    made = [
        picture(with_parameters(disc(), {"seed": number}), "a disc", file=f"{number}.png")
        for number in range(2)
    ]
    packed = base64.b64decode(group(made)["zip"].partition(",")[2])
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        read = Image.open(io.BytesIO(archive.read("1.png")))
    assert json.loads(read.info["parameters"]) == {"seed": 1}


def test_a_training_image_is_shown_small_and_cannot_be_saved() -> None:
    shown = training_picture(Image.new("RGB", (3000, 1000)), "a training image")
    read = Image.open(io.BytesIO(base64.b64decode(shown["src"].partition(",")[2])))
    assert read.size == (256, 85) and group([shown, shown])["zip"] == ""


def test_a_port_in_use_is_named_before_a_model_is_loaded(checkpoint: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ClipgenError, match=rf"cannot listen at 127\.0\.0\.1:{port} \(Address already"):
            serve([checkpoint], host="127.0.0.1", port=port, root_path="", waiting=1)
