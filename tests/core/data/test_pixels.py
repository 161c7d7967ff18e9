import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipgen_core.data.pixels import (
    Rejected,
    decode,
    fit_square,
    grid,
    png_bytes,
    random_crop,
    to_images,
    with_parameters,
)
from clipgen_core.data.pixels import to_tensor as tensor_of


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def solid(mode: str, colour: Any, size: tuple[int, int] = (20, 10)) -> Image.Image:
    return Image.new(mode, size, colour)


def pixel(data: bytes) -> tuple[int, ...]:
    value = decode(data).image.getpixel((0, 0))
    assert isinstance(value, tuple)
    return value


def test_transparent_pixels_become_white() -> None:
    assert pixel(encoded(solid("RGBA", (255, 0, 0, 0)), "PNG")) == (255, 255, 255)
    assert pixel(encoded(solid("RGBA", (255, 0, 0, 255)), "PNG")) == (255, 0, 0)


def test_palette_with_transparency_and_grey_alpha() -> None:
    palette = solid("P", 0)
    palette.putpalette([0, 0, 255] + [0] * 765)
    assert pixel(encoded(palette, "PNG")) == (0, 0, 255)
    assert pixel(encoded(palette, "PNG", transparency=0)) == (255, 255, 255)
    assert pixel(encoded(solid("LA", (10, 0)), "PNG")) == (255, 255, 255)


def test_cmyk_jpeg_is_converted() -> None:
    red, green, blue = pixel(encoded(solid("CMYK", (0, 255, 255, 0)), "JPEG", quality=95))
    assert red > 200 and green < 60 and blue < 60


def test_sixteen_bit_grey_keeps_its_brightness() -> None:
    values = np.full((10, 20), 32768, dtype=np.uint16)
    assert pixel(encoded(Image.fromarray(values), "PNG")) == (127, 127, 127)


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(solid("RGB", "red"), "JPEG", exif=exif)).image.size == (10, 20)


def test_animation_gives_its_first_frame() -> None:
    frames = [solid("RGB", "lime"), solid("RGB", "blue")]
    assert pixel(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == (0, 255, 0)


def test_content_decides_not_the_name() -> None:
    assert decode(encoded(solid("RGB", "red"), "WEBP")).format == "WEBP"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"just some text", "not_an_image"),
        (encoded(solid("RGB", "red", (200, 200)), "PNG")[:150], "damaged"),
        (encoded(Image.effect_noise((200, 200), 90), "JPEG")[:3000], "damaged"),
        (encoded(solid("RGB", "red", (1, 1)), "PNG"), "too_small"),
        (encoded(solid("1", 0, (9000, 9000)), "PNG"), "too_large"),
    ],
)
def test_unusable_pictures_are_rejected_with_their_reason(data: bytes, reason: str) -> None:
    with pytest.raises(Rejected) as rejected:
        decode(data, min_side=2)
    assert rejected.value.reason == reason


def test_a_decompression_bomb_is_rejected_from_its_header() -> None:
    bomb = encoded(solid("1", 0, (20000, 20000)), "PNG")
    with pytest.raises(Rejected, match="too_large"):
        decode(bomb)


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_rejected(data: bytes) -> None:
    try:
        decode(data)
    except Rejected as rejected:
        assert rejected.reason


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


def test_fit_square_grid_and_png() -> None:
    squares = [fit_square(solid("RGB", colour, (30, 20)), 8) for colour in ("red", "blue", "lime")]
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
