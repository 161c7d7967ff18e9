"""Samples of any depth to 8 bits: 16-bit and float images, and the bands of a GeoTIFF.

A file whose range of values is not known is rejected rather than shown too dark; a setting names it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from clipgen_core.data.rejected import Rejected, require_size
from clipgen_core.extras import needed_for
from clipgen_core.settings.images import Accepted

MIN_VALUE, MAX_VALUE, SMALLEST, LARGEST, BITS, NO_DATA = 280, 281, 340, 341, 258, 42113  # TIFF tags
PERCENTILES = (2.0, 98.0)
SAMPLED = 2**20  # values that the percentiles are taken of
DARK = 4  # an image whose brightest value is below a fourth of the range is not of this range
ROWS = 1024  # converted at once

HINT = "set images.scale to depth or percentiles, or images.scale_range"


def is_deep(image: Image.Image) -> bool:
    """Whether the samples have more than 8 bits, as Pillow opened the image."""
    return image.mode == "F" or image.mode.startswith("I")


def to_eight_bits(image: Image.Image, accepted: Accepted) -> Image.Image:
    """Convert a deep image of one band.

    Args:
        image: Of mode I, I;16 or F.
        accepted: Which values become black and white.

    Returns:
        An image of mode L; of mode LA if values are no data.

    Raises:
        Rejected: The file does not say what its range is, and none was given.
    """
    values = np.asarray(image)
    missing = _missing(image, values)
    low, high = _range(values, missing, accepted, declared(image))
    grey = Image.fromarray(_scaled(values, low, high))
    if missing is not None:
        grey.putalpha(Image.fromarray(np.where(missing, 0, 255).astype(np.uint8)))
    return grey


def declared(image: Image.Image) -> tuple[float, float] | None:
    """The range of values that the format or the file's tags name; None if nothing does."""
    if isinstance(image, TiffImageFile):
        tags: Any = image.tag_v2
        for lowest, highest in ((SMALLEST, LARGEST), (MIN_VALUE, MAX_VALUE)):
            if highest in tags:
                return _number(tags.get(lowest, 0)), _number(tags[highest])
        bits = int(_number(tags.get(BITS, 1)))
        return (0.0, 2.0**bits - 1) if 8 < bits < 16 else None
    return (0.0, 65535.0) if image.mode == "I" else None  # Pillow scales a deep PPM to 16 bits


def bands_of_tiff(data: bytes, accepted: Accepted, side: int | None) -> Image.Image:
    """Read chosen bands of a TIFF file, for which rasterio is needed.

    Args:
        data: The file's bytes.
        accepted: Which bands, and their scale.
        side: The longest side that is needed, in pixels; all pixels if None.

    Returns:
        An image of mode L or RGB; of mode LA or RGBA if pixels are no data.

    Raises:
        Rejected: A band does not exist, or nothing tells the range of values.
    """
    with needed_for("images.bands and images.scale for TIFF files"):
        import rasterio.io

    with rasterio.io.MemoryFile(data) as file, file.open(driver="GTiff") as tiff:
        require_size(accepted, tiff.width, tiff.height)
        bands = accepted.bands or ((1, 2, 3) if tiff.count >= 3 else (1,))
        if max(bands) > tiff.count:
            raise Rejected("unsupported", f"it has {tiff.count} bands, and images.bands names {max(bands)}")
        shape = _shape(tiff.height, tiff.width, side)
        values = tiff.read(list(bands), out_shape=(len(bands), *shape))
        valid = tiff.read_masks(list(bands), out_shape=(len(bands), *shape)).min(axis=0)
    missing = valid == 0
    if np.issubdtype(values.dtype, np.floating):
        missing |= ~np.isfinite(values).all(axis=0)
    known = missing if missing.any() else None
    planes = [_scaled(one, *_range(one, known, accepted, None)) for one in values]
    image = Image.merge(
        "RGB", [Image.fromarray(plane) for plane in (planes * 3 if len(planes) == 1 else planes)]
    )
    if known is not None:
        image.putalpha(Image.fromarray(np.where(missing, 0, 255).astype(np.uint8)))
    return image


def _shape(height: int, width: int, side: int | None) -> tuple[int, int]:
    share = min(1.0, side / max(height, width)) if side else 1.0
    return max(round(height * share), 1), max(round(width * share), 1)


def _missing(image: Image.Image, values: np.ndarray) -> np.ndarray | None:
    """Which pixels are no data, bool [h, w]: NaN, or the value that the file names; None if none is."""
    found = ~np.isfinite(values) if image.mode == "F" else np.zeros(values.shape, bool)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        found |= values == transparent
    if isinstance(image, TiffImageFile) and NO_DATA in image.tag_v2:
        tags: Any = image.tag_v2
        found |= values == float(str(tags[NO_DATA]).strip("\0 ") or "nan")
    return found if found.any() else None


def _range(
    values: np.ndarray, missing: np.ndarray | None, accepted: Accepted, said: tuple[float, float] | None
) -> tuple[float, float]:
    """The values that become black and white."""
    if values.dtype == np.uint8:
        return 0.0, 255.0
    if accepted.scale_range:
        return accepted.scale_range
    whole = said or _of_type(values.dtype)
    step = max(values.size // SAMPLED, 1)
    seen = (values if missing is None else values[~missing]).ravel()[::step]
    if accepted.scale == "depth" or not seen.size:
        return whole
    if accepted.scale == "percentiles":
        low, high = np.percentile(seen, PERCENTILES)
        return float(low), float(high)
    bottom, top = float(seen.min()), float(seen.max())
    if said is None and (bottom < whole[0] or top > whole[1] or DARK * top < whole[1] > 1):
        raise Rejected(
            "unsupported",
            f"samples of type {values.dtype} from {bottom:g} to {top:g} whose range is not known: {HINT}",
        )
    return whole


def require_bright(image: Image.Image) -> None:
    """Refuse a TIFF of 16-bit colours that uses a small part of their range, which Pillow shows nearly black.

    Raises:
        Rejected: Nothing tells the range of values.
    """
    tags: Any = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    if image.mode not in ("RGB", "RGBA") or _number(tags.get(BITS, 8)) != 16 or LARGEST in tags:
        return
    top = max(high for _, high in image.convert("RGB").getextrema())  # type: ignore[misc, union-attr]
    if DARK * top < 255:
        raise Rejected("unsupported", f"16-bit colours up to {top} of 255 whose range is not known: {HINT}")


def _of_type(dtype: np.dtype[Any]) -> tuple[float, float]:
    return (0.0, float(np.iinfo(dtype).max)) if np.issubdtype(dtype, np.integer) else (0.0, 1.0)


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values as uint8, of which `low` is 0 and `high` is 255; what is no number becomes 0."""
    factor, made = 255 / (high - low or 1), np.empty(values.shape, np.uint8)
    for start in range(0, len(values), ROWS):
        some = (values[start : start + ROWS].astype(np.float32) - low) * factor + 0.5
        made[start : start + ROWS] = np.nan_to_num(some, nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255)
    return made


def _number(value: Any) -> float:
    return float(value[0] if isinstance(value, Sequence) else value)
