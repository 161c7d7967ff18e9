"""Decode the bytes of an image file to an RGB image, or say why it cannot be used.

The format is read from the content, never from the file's name. Knows nothing of folders or tables.
"""

import io
import sys
import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from clipgen_core.data.colour import to_rgb
from clipgen_core.data.depth import bands_of_tiff, is_deep, require_bright
from clipgen_core.data.kinds import READ, TIFF, function_of, opened_by_plugin, unread_kind, way_out
from clipgen_core.data.rejected import Rejected, require_size
from clipgen_core.data.unread import undecoded, why_unread
from clipgen_core.errors import ClipgenError
from clipgen_core.settings.images import Accepted

END = b"\xff\xd9"  # of a JPEG
FILLING = bytes(range(1, 241)) * 4  # bytes that change the pixels that a JPEG lacks
DNG, SUB_IMAGES, SUBFILE, BITS, COMPRESSION, PLANES = 50706, 330, 254, 258, 259, 284  # TIFF tags
SEPARATE = 2  # planes
PHOTOS = ("JPEG", "AVIF", "HEIC")  # formats that lose a little each time
ANY = Accepted()
STORED = Accepted(max_pixels=sys.maxsize, max_missing=1.0, scale="depth")


@dataclass(frozen=True)
class Decoded:
    """An image in RGB, upright, of its first frame, on white.

    Attributes:
        image: Of mode RGB.
        format: The name of the file's format.
        plain: Whether `decode_stored` gives the same image from the file's bytes, without settings and
            optional packages.
    """

    image: Image.Image
    format: str
    plain: bool = True


def decode(data: bytes, accepted: Accepted = ANY, side: int | None = None) -> Decoded:
    """Decode an image file.

    Handles palettes, CMYK, colour profiles, 16-bit and float samples, transparency, EXIF orientation and
    animations (their first frame). The size in the header is checked before any pixel is decoded.

    Args:
        data: The file's bytes.
        accepted: Which images are accepted.
        side: The longest side that is needed, in pixels; a larger image is reduced to it. All pixels if None.

    Returns:
        The image and its format.

    Raises:
        Rejected: The image cannot be used; see its reasons.
        ClipgenError: A setting needs a package that is not installed.
        MemoryError: There is not enough memory, which says nothing of the image.
    """
    if not data:
        raise Rejected("empty", "the file has no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decoded(data, accepted, side)
    except (Rejected, ClipgenError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise Rejected("too_large", str(error)) from error
    except Exception as error:
        if opened_only := undecoded(data):
            raise Rejected("unsupported", opened_only) from error
        unread = str(error).startswith("Unsupported")  # as Pillow says of kinds of BMP files
        reason = "unsupported" if unread else "damaged"
        raise Rejected(reason, f"{type(error).__name__}: {error}") from error


def decode_stored(data: bytes) -> Image.Image:
    """Decode an image of the images table, which was accepted when it was ingested."""
    return decode(data, STORED).image


def encoded(decoded: Decoded) -> bytes:
    """The bytes to store for an image that is not plain: a JPEG of high quality for a photo, else a PNG."""
    buffer = io.BytesIO()
    if decoded.format in PHOTOS:
        decoded.image.save(buffer, format="JPEG", quality=95, subsampling=0)
    else:
        decoded.image.save(buffer, format="PNG")
    return buffer.getvalue()


def _decoded(data: bytes, accepted: Accepted, side: int | None) -> Decoded:
    if data.startswith(TIFF) and accepted.chooses_samples:
        return Decoded(to_rgb(bands_of_tiff(data, accepted, side)), "TIFF", plain=False)
    image, name = _open(data, accepted)
    require_size(accepted, *image.size)
    if accepted is not STORED:  # what earlier versions stored is still read
        _require_planes(image)
    full = image.size
    if side and isinstance(image, JpegImageFile):
        image.draft("RGB", (side, side))
    deep = is_deep(image)
    loaded = _loaded(image, data, accepted)
    if accepted.scale == "file":
        require_bright(loaded)
    made = to_rgb(_upright(loaded), accepted)
    if side:
        made.thumbnail((side, side), Image.Resampling.LANCZOS)
    settled = name in READ and not (deep and accepted.chooses_samples)
    return Decoded(made, name, plain=settled and max(made.size) == max(full))


def _open(data: bytes, accepted: Accepted) -> tuple[Image.Image, str]:
    """Read the header; (image, name of the format)."""
    kind = unread_kind(data)
    if kind == "camera RAW":
        return _developed(data, accepted), kind
    try:
        image = Image.open(io.BytesIO(data), formats=(*READ, *opened_by_plugin(kind)))
    except UnidentifiedImageError as error:
        if accepted.decoder and (made := function_of(accepted.decoder)(data)) is not None:
            return made, kind or "other"
        raise why_unread(data, READ) from error
    if _holds_raw(image):
        return _developed(data, accepted), "camera RAW"
    named = "JPEG" if image.format == "MPO" else image.format  # two photos in one file, of which the first
    return image, named if named and named in READ else kind or ""


def _require_planes(image: Image.Image) -> None:
    """Refuse 16-bit colours in a plane each, not compressed, which Pillow reads as if they had 8 bits.

    Raises:
        Rejected: The image is such a TIFF.
    """
    tags: Any = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    bits = tags.get(BITS, ())
    if tags.get(PLANES) == SEPARATE and tags.get(COMPRESSION, 1) == 1 and len(bits) > 1 and max(bits) > 8:
        unread = "TIFF of 16-bit colours in separate planes"
        raise Rejected("unsupported", unread + way_out("TIFF"))


def _holds_raw(image: Image.Image) -> bool:
    """Whether a TIFF file is a camera's: Pillow would show the small preview that comes first in it."""
    if not isinstance(image, TiffImageFile):
        return False
    tags: Any = image.tag_v2
    return DNG in tags or (SUB_IMAGES in tags and tags.get(SUBFILE) == 1)


def _developed(data: bytes, accepted: Accepted) -> Image.Image:
    try:
        import rawpy
    except ImportError as error:
        raise Rejected("unsupported", f"camera RAW{way_out('camera RAW')}") from error
    with rawpy.imread(io.BytesIO(data)) as raw:
        require_size(accepted, raw.sizes.width, raw.sizes.height)
        return Image.fromarray(raw.postprocess(use_camera_wb=True))


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says; EXIF that cannot be read is as none."""
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _loaded(image: Image.Image, data: bytes, accepted: Accepted) -> Image.Image:
    try:
        image.load()
    except OSError as error:
        if not isinstance(image, JpegImageFile) or "progressive" in image.info:
            raise
        return _cut_short(image, data, accepted, error)
    return image


def _cut_short(image: Image.Image, data: bytes, accepted: Accepted, error: OSError) -> Image.Image:
    """The rows that a JPEG file holds whose end is missing.

    They are those that other bytes in the place of the missing ones leave as they are.

    Args:
        image: Its header.
        data: The bytes.
        accepted: How much may be missing.
        error: Of the decoder.

    Returns:
        The image without the missing rows.

    Raises:
        Rejected: More is missing.
    """
    with_end, other = (_pixels(data + filling + END, image.size) for filling in (b"", FILLING))
    changed = np.flatnonzero((with_end != other).reshape(len(with_end), -1).any(axis=1))
    rows = int(changed[0]) if changed.size else len(with_end)
    missing = 1 - rows / len(with_end)
    if missing > accepted.max_missing or not rows:
        raise Rejected(
            "damaged",
            f"the file is cut short, {missing:.0%} of the rows are missing: see images.max_missing",
        ) from error
    whole = Image.fromarray(with_end[:rows], image.mode if image.mode == "CMYK" else None)
    whole.info, whole.format = image.info, image.format
    return whole


def _pixels(data: bytes, size: tuple[int, int]) -> np.ndarray:
    image = Image.open(io.BytesIO(data), formats=("JPEG",))
    image.draft("RGB", size)
    return np.asarray(image)
