import io
import struct
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from clipgen_core.data import decode as decoding
from clipgen_core.data.decode import decode, decode_stored
from clipgen_core.data.decode import encoded as stored
from clipgen_core.data.kinds import opened_by_plugin
from clipgen_core.data.rejected import Rejected
from clipgen_core.errors import ClipgenError
from clipgen_core.settings.images import Accepted, Config

RAMP = np.linspace(0, 255, 48 * 32).reshape(32, 48)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def solid(mode: str, colour: Any, size: tuple[int, int] = (20, 10)) -> Image.Image:
    return Image.new(mode, size, colour)


def values(data: bytes, accepted: Accepted = Accepted()) -> np.ndarray:  # noqa: B008
    return np.asarray(decode(data, accepted).image, dtype=int)


def photo(size: tuple[int, int] = (160, 120)) -> Image.Image:
    noise = [Image.effect_noise(size, 60).resize(size) for _ in range(3)]
    return Image.merge("RGB", noise)


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
    assert pixel(encoded(Image.fromarray(values), "PNG")) == (128, 128, 128)


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
        (encoded(solid("RGB", "red", (100, 10)), "PNG"), "too_long"),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported"),
        (b"%PDF-1.7", "not_an_image"),
        (b"v/1\x01", "unsupported"),
    ],
)
def test_unusable_pictures_are_rejected_with_their_reason(data: bytes, reason: str) -> None:
    with pytest.raises(Rejected) as rejected:
        decode(data, Accepted(min_side=2, max_aspect=9))
    assert rejected.value.reason == reason


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_pixels": 1_000}, "too_large: 60x20 is more than images.max_pixels: 1,000"),
        ({"min_side": 21}, "too_small: 60x20 has a side below images.min_side: 21"),
        ({"max_aspect": 2.5}, "too_long: 60x20 is longer than images.max_aspect: 2.5 times"),
    ],
)
def test_a_limit_is_named_by_its_setting(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(Rejected, match=said):
        decode(encoded(solid("RGB", "red", (60, 20)), "PNG"), Accepted(**settings))


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


# Depth


def tiff16(values: np.ndarray, **tags: Any) -> bytes:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    described = ImageFileDirectory_v2()
    for tag, value in tags.items():
        described[int(tag[1:])] = value
    return encoded(Image.fromarray(values), "TIFF", tiffinfo=described)


def test_the_range_of_a_deep_image_is_the_files_own() -> None:
    twelve_bits = (RAMP * 16).astype(np.uint16)
    data = tiff16(twelve_bits, t281=4095)  # MaxSampleValue
    assert abs(values(data)[..., 0] - RAMP).max() <= 1.5


def test_a_deep_image_of_unknown_range_is_said_not_shown_dark() -> None:
    data = tiff16((RAMP * 16).astype(np.uint16))
    with pytest.raises(Rejected, match="unsupported: samples of type uint16 from 0 to 4080 .* images.scale"):
        decode(data)
    for accepted in (Accepted(scale_range=(0, 4095)), Accepted(scale="percentiles")):
        pytest.importorskip("rasterio")
        assert abs(values(data, accepted)[..., 0] - RAMP).max() <= 8
    assert values(data, Accepted(scale="depth")).max() == 16
    assert np.asarray(decode_stored(data)).max() == 16


def test_what_is_no_number_is_no_data_and_white() -> None:
    floats = (RAMP / 255).astype(np.float32)
    floats[0, 0] = np.nan
    read = values(tiff16(floats))
    assert (read[0, 0] == 255).all() and abs(read[1:, :, 0] - RAMP[1:]).max() <= 1


def test_the_value_for_no_data_is_white() -> None:
    deep = (RAMP * 257).astype(np.uint16)
    assert (values(tiff16(deep, t42113="0"))[0, 0] == 255).all()


def test_a_transparent_colour_of_sixteen_bits_is_white() -> None:
    deep = Image.fromarray((RAMP * 257).astype(np.uint16))
    read = values(encoded(deep, "PNG", transparency=int(deep.getpixel((5, 5)))))  # type: ignore[arg-type]
    assert (read[5, 5] == 255).all() and read[4, 4, 0] == pytest.approx(RAMP[4, 4], abs=1)


def test_floats_beyond_one_are_said() -> None:
    with pytest.raises(Rejected, match="from 0 to 255 whose range is not known"):
        decode(tiff16(RAMP.astype(np.float32)))


def satellite(bands: np.ndarray, **profile: Any) -> bytes:
    rasterio = pytest.importorskip("rasterio.io")
    with rasterio.MemoryFile() as file:
        count, height, width = bands.shape
        shape = {"count": count, "height": height, "width": width, "dtype": bands.dtype}
        with file.open(driver="GTiff", **shape, **profile) as made:
            made.write(bands)
        return bytes(file.read())


def test_bands_are_chosen_and_scaled_by_settings() -> None:
    bands = np.stack([RAMP * 10 * (band + 1) for band in range(5)]).astype(np.uint16)
    bands[:, 0, 0] = 9
    data = satellite(bands, nodata=9)
    with pytest.raises(Rejected, match=r"unsupported: TIFF of samples .*clipgen\[geo\]"):
        decode(data)
    accepted = Accepted(bands=(3, 2, 1), scale_range=(0, 7650))
    made = decode(data, accepted)
    assert (np.asarray(made.image)[0, 0] == 255).all() and not made.plain
    want = np.stack([RAMP, RAMP * 2 / 3, RAMP / 3], -1)
    assert abs(np.asarray(made.image, dtype=int) - want)[1:].max() <= 1
    assert decode_stored(stored(made)).tobytes() == made.image.tobytes()
    grey = values(data, Accepted(bands=(5,), scale="percentiles"))
    assert grey[0, 1:].min() == 0 and grey.max() == 255 and (grey[..., 0] == grey[..., 2]).all()
    with pytest.raises(Rejected, match="it has 5 bands, and images.bands names 6"):
        decode(data, Accepted(bands=(6,)))
    assert decode(data, Accepted(bands=(1,), scale="depth"), side=24).image.size == (24, 16)


def test_sixteen_bit_colours_that_would_be_black_are_said() -> None:
    bands = np.stack([RAMP * 16] * 3).astype(np.uint16)
    with pytest.raises(Rejected, match="unsupported: 16-bit colours up to 15 of 255"):
        decode(satellite(bands, photometric="RGB"))
    assert values(satellite(np.stack([RAMP * 257] * 3).astype(np.uint16), photometric="RGB")).max() == 255


@pytest.mark.parametrize("given", [{"bands": (0,)}, {"bands": (1, 2)}, {"scale_range": (3.0, 3.0)}])
def test_settings_of_samples_that_cannot_be_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ClipgenError, match="images\\.(bands|scale_range)"):
        Config(**given)


# Colours


def profile_of(gamma: float) -> bytes:
    """An ICC profile of RGB with sRGB's primaries and another tone curve: the bytes of sRGB's, changed."""
    curve = struct.pack(">4sIIH", b"curv", 0, 1, round(gamma * 256)) + b"\0\0"
    made = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    count = struct.unpack(">I", made[128:132])[0]
    tags, body = bytearray(made[: 132 + 12 * count]), made[132 + 12 * count :] + b"\0" * (-len(made) % 4)
    for i in range(132, len(tags), 12):
        if tags[i : i + 4] in (b"rTRC", b"gTRC", b"bTRC"):
            struct.pack_into(">II", tags, i + 4, len(tags) + len(body), len(curve))
    whole = bytes(tags) + body + curve
    return struct.pack(">I", len(whole)) + whole[4:]


def test_a_profile_is_applied() -> None:
    image = solid("RGB", (128, 128, 128))
    linear = pixel(encoded(image, "PNG", icc_profile=profile_of(1.0)))
    assert linear == pytest.approx((188, 188, 188), abs=1)  # sRGB of half the light
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"broken", profile_of(1.0)[:200]):
        assert pixel(encoded(image, "PNG", icc_profile=profile)) == (128, 128, 128)


def test_transparency_and_palettes_keep_their_profile() -> None:
    half = solid("RGBA", (128, 128, 128, 128))
    assert pixel(encoded(half, "PNG", icc_profile=profile_of(1.0)))[0] == pytest.approx(221, abs=2)
    palette = solid("RGB", (128, 128, 128)).quantize(2)
    assert pixel(encoded(palette, "PNG", icc_profile=profile_of(1.0)))[0] == pytest.approx(188, abs=2)
    grey = solid("L", 128)
    assert pixel(encoded(grey, "JPEG", icc_profile=profile_of(1.0)))[0] == pytest.approx(188, abs=2)


def test_exif_that_is_broken_is_as_none() -> None:
    assert decode(encoded(solid("RGB", "red"), "PNG", exif=b"Exif\0\0broken")).image.size == (20, 10)


# Files that are not whole


def test_a_jpeg_may_lack_its_last_two_bytes() -> None:
    whole = encoded(photo(), "JPEG")
    assert np.array_equal(values(whole[:-2]), values(whole))
    assert np.array_equal(values(whole[:-1]), values(whole))


def test_how_much_of_a_jpeg_may_be_missing_is_a_setting() -> None:
    whole = encoded(photo((160, 480)), "JPEG")
    cut = whole[: int(0.8 * len(whole))]
    with pytest.raises(Rejected, match="damaged: the file is cut short, 2.% of the rows are missing"):
        decode(cut)
    read = values(cut, Accepted(max_missing=0.3))
    assert 0.7 * 480 <= len(read) < 480 and np.array_equal(read, values(whole)[: len(read)])
    assert decode_stored(cut).size == (160, len(read))


def test_a_progressive_jpeg_that_is_cut_is_damaged() -> None:
    whole = encoded(photo(), "JPEG", progressive=True)
    with pytest.raises(Rejected, match="damaged"):
        decode(whole[: len(whole) // 2], Accepted(max_missing=1))


def test_too_little_memory_is_not_the_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(decoding, "to_rgb", full)
    with pytest.raises(MemoryError):
        decode(encoded(solid("RGB", "red"), "PNG"))


# Kinds


@pytest.mark.parametrize("format", ["AVIF", "JPEG2000", "WEBP", "TIFF", "BMP", "PPM", "GIF"])
def test_formats_that_pillow_reads_are_stored_as_they_are(format: str) -> None:
    made = decode(encoded(solid("RGB", (200, 30, 30)), format))
    assert (made.format, made.plain) == (format, True)
    assert abs(np.asarray(made.image, dtype=int) - (200, 30, 30)).max() < 12


@pytest.mark.parametrize(("kind", "format"), [("HEIC", "HEIF"), ("JPEG XL", "JXL")])
def test_formats_of_extras_are_stored_so_that_no_reader_needs_the_extra(kind: str, format: str) -> None:
    if not opened_by_plugin(kind):
        pytest.skip(f"the extra for {kind} is not installed")
    made = decode(encoded(photo((64, 48)), format))
    assert (made.format, made.plain, made.image.size) == (kind, False, (64, 48))
    assert decode_stored(stored(made)).size == (64, 48)


def test_a_kind_whose_extra_is_missing_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "opened_by_plugin", lambda kind: ())
    data = b"\0\0\0\x18ftypheic" + bytes(40)
    with pytest.raises(Rejected, match=r"unsupported: HEIC: pip install 'clipgen\[heif\]'"):
        decode(data)


def test_a_function_of_the_user_decodes_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("my_decoders")
    module.blue = lambda data: solid("RGB", "blue") if data.startswith(b"mine") else None
    monkeypatch.setitem(sys.modules, "my_decoders", module)
    accepted = Accepted(decoder="my_decoders:blue")
    made = decode(b"mine, and more", accepted)
    assert made.image.getpixel((0, 0)) == (0, 0, 255) and not made.plain
    with pytest.raises(Rejected, match="not_an_image"):
        decode(b"not mine", accepted)
    for address in ("my_decoders:red", "my_decoders"):
        with pytest.raises(ClipgenError, match="name a function as package.module:function"):
            decode(b"mine", Accepted(decoder=address))


def test_a_large_photo_is_reduced_as_it_is_stored() -> None:
    made = decode(encoded(photo((1600, 1200)), "JPEG"), side=200)
    assert made.image.size == (200, 150) and not made.plain
    again = decode_stored(stored(made))
    assert again.size == (200, 150) and stored(made).startswith(b"\xff\xd8")
    flat = decode(encoded(photo((400, 300)), "PNG"), side=200)
    assert decode_stored(stored(flat)).tobytes() == flat.image.tobytes()
    assert decode(encoded(photo((160, 120)), "PNG"), side=200).plain


@pytest.mark.parametrize("compress", ["none", "deflate"])
def test_sixteen_bit_colours_in_separate_planes_are_right_or_refused(compress: str) -> None:
    rasterio_io = pytest.importorskip("rasterio.io")
    ramp = np.linspace(0, 65535, 48 * 32).reshape(32, 48).astype(np.uint16)
    with rasterio_io.MemoryFile() as file:
        layout = {"height": 32, "width": 48, "count": 3, "dtype": "uint16", "interleave": "band"}
        with file.open(driver="GTiff", photometric="RGB", compress=compress, **layout) as tiff:
            tiff.write(np.stack([ramp] * 3))
        data = file.read()
    if compress == "none":
        with pytest.raises(Rejected, match=r"unsupported: TIFF of 16-bit colours.*clipgen\[geo\]"):
            decode(data)
        shown = values(data, Accepted(bands=(1, 2, 3), scale="depth"))
    else:
        shown = values(data)
    assert np.abs(shown - RAMP[..., None]).max() <= 1


def test_a_kind_of_bmp_that_is_not_read_is_not_called_damaged() -> None:
    data = bytearray(encoded(solid("RGB", "red"), "BMP"))
    data[28:30] = (2).to_bytes(2, "little")  # bits a pixel, which Windows CE has
    with pytest.raises(Rejected, match="unsupported: OSError: Unsupported BMP pixel depth"):
        decode(bytes(data))
