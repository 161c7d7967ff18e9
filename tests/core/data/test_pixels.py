import io
import json
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipgen_core.data.pixels import (
    fit_square,
    grid,
    png_bytes,
    random_crop,
    to_bytes,
    to_float,
    to_images,
    with_parameters,
)
from clipgen_core.data.pixels import to_tensor as tensor_of


@given(st.integers(0, 2**31), st.floats(0.1, 1.0), st.integers(5, 60), st.integers(5, 60))
def test_random_crop_is_square_and_repeats_by_seed(seed: int, smallest: float, w: int, h: int) -> None:
    image = Image.effect_noise((w, h), 90).convert("RGB")
    first, again = (random_crop(image, 16, smallest, seed) for _ in range(2))
    assert first.size == (16, 16)
    assert first.tobytes() == again.tobytes()


def test_tensor_round_trip_is_exact(random_images: Any) -> None:
    images = random_images(3)
    for image, back in zip(images, to_images(tensor_of(images)), strict=True):
        assert image.tobytes() == back.tobytes()


def test_bytes_become_floats_on_the_device_as_they_did_in_numpy() -> None:
    values = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    expected = values.astype(np.float32)
    expected /= 127.5
    expected -= 1
    stored = to_bytes([Image.fromarray(values[0])])
    read = to_float(stored)
    assert stored.dtype is torch.uint8 and read.is_contiguous(memory_format=torch.channels_last)
    assert (read.permute(0, 2, 3, 1).numpy() == expected).all()
    assert torch.equal(read, tensor_of([Image.fromarray(values[0])]))


def test_fit_square_grid_and_png() -> None:
    squares = [fit_square(Image.new("RGB", (30, 20), colour), 8) for colour in ("red", "blue", "lime")]
    sheet = Image.open(io.BytesIO(png_bytes(grid(squares, columns=2, gap=2))))
    assert sheet.size == (18, 18)
    assert sheet.getpixel((0, 0)) == (255, 0, 0)
    assert sheet.getpixel((0, 10)) == (0, 255, 0)


def test_what_made_a_picture_travels_in_its_png() -> None:
    image = with_parameters(Image.new("RGB", (4, 4), "red"), {"prompt": "ein Herz ❤", "seed": 3})
    read = Image.open(io.BytesIO(png_bytes(image)))
    assert json.loads(read.info["parameters"]) == {"prompt": "ein Herz ❤", "seed": 3}
    assert read.tobytes() == image.tobytes()
    assert "parameters" not in Image.open(io.BytesIO(png_bytes(Image.new("RGB", (4, 4))))).info
