import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipgen_core.data.decode import decode
from clipgen_core.data.kinds import looks_like_image
from clipgen_core.data.rejected import Rejected

TEXT = Image.fromarray((np.mgrid[:240, :320].sum(0) // 7) % 3 == 0)  # black and white


def encoded(image: Image.Image, kind: str, **settings: Any) -> bytes:
    image.save(buffer := io.BytesIO(), kind, **settings)
    return buffer.getvalue()


def with_compression(number: int) -> bytes:
    """A TIFF whose tag says that it has another compression."""
    data = encoded(TEXT.convert("RGB"), "TIFF")
    tag = struct.pack("<HHIH", 259, 3, 1, 1)
    assert data.count(tag) == 1
    return data.replace(tag, struct.pack("<HHIH", 259, 3, 1, number))


def jpeg(marker: int, bits: int) -> bytes:
    """The start of a JPEG, with 2 kB before its first frame as cameras write them."""
    frame = struct.pack(">BBHBHHB", 0xFF, marker, 11, bits, 240, 320, 1) + b"\1\x11\0"
    return b"\xff\xd8" + b"\xff\xe1" + struct.pack(">H", 2002) + bytes(2000) + frame + bytes(100)


def rejected(data: bytes) -> str:
    assert looks_like_image("no-extension", data)
    with pytest.raises(Rejected) as found:
        decode(data)
    return str(found.value)


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt", None])
def test_a_tiff_that_is_cut_short_is_damaged(compression: str | None) -> None:
    data = encoded(TEXT, "TIFF", compression=compression)
    assert decode(data).image.size == (320, 240)
    said = rejected(data[: len(data) * 2 // 3])
    assert said.startswith("damaged: ")


@pytest.mark.parametrize("number", [34887, 50001, 50002])
def test_a_compression_of_tiff_that_is_not_read_is_named(number: int) -> None:
    said = rejected(with_compression(number))
    assert said.startswith(f"unsupported: TIFF of compression {number}") and "clipgen[geo]" in said


@pytest.mark.parametrize(
    ("marker", "bits", "said"),
    [
        (0xC1, 12, "JPEG of 12 bits"),
        (0xC3, 16, "JPEG of 16 bits"),
        (0xF7, 8, "JPEG-LS"),
    ],
)
def test_a_jpeg_that_is_not_read_is_named(marker: int, bits: int, said: str) -> None:
    assert rejected(jpeg(marker, bits)).startswith(f"unsupported: {said}: convert it")


def test_a_header_that_is_cut_short_is_damaged() -> None:
    for data in (encoded(TEXT, "PNG")[:12], encoded(TEXT.convert("L"), "JPEG")[:30]):
        assert rejected(data).startswith("damaged: ")


def png(values: np.ndarray, gamma: int, *more: tuple[bytes, bytes]) -> bytes:
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    for kind, data in ((b"gAMA", struct.pack(">I", gamma)), *more):
        info.add(kind, data)
    return encoded(Image.fromarray(values), "PNG", pnginfo=info)


@pytest.mark.parametrize("values", [np.full((20, 20), 14_000, np.uint16), np.full((20, 20, 3), 55, np.uint8)])
def test_values_of_light_become_those_of_srgb(values: np.ndarray) -> None:
    values[0, 0] = np.iinfo(values.dtype).max  # the range is in use

    def brightness(data: bytes) -> int:
        return int(np.asarray(decode(data).image)[5, 5, 0])

    assert abs(brightness(png(values, 100_000)) - 128) <= 1  # 21 % of the light
    assert abs(brightness(png(values, 45_455)) - 55) <= 1
    assert abs(brightness(png(values, 100_000, (b"sRGB", b"\0"))) - 55) <= 1
