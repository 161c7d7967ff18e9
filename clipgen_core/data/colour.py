"""Colours of an image as Pillow opened it to 8-bit sRGB on white: profiles, CMYK, transparency, depth."""

import functools
import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from clipgen_core.data.depth import is_deep, to_eight_bits
from clipgen_core.settings.images import Accepted

CUBE = 9  # colours a channel that tell whether a profile differs from sRGB
SAME = 1  # of 255: the most that a profile's colours may differ and count as sRGB
SPACES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}  # of profiles, as the modes of Pillow
ANY = Accepted(scale="depth")
SRGB = ImageCms.createProfile("sRGB")
LINEAR = (0.9, 1.1)  # the gamma of images of light; others are near 0.45, that of sRGB
FROM_LINEAR = [
    round(255 * (12.92 * v if v <= 0.0031308 else 1.055 * v ** (1 / 2.4) - 0.055))
    for v in (value / 255 for value in range(256))
]


def to_rgb(image: Image.Image, accepted: Accepted = ANY) -> Image.Image:
    """Convert an image to sRGB with 8 bits a channel; transparent pixels are composited on white.

    Args:
        image: An image of any mode. Its ICC profile, if it has a usable one, is applied.
        accepted: Of images of more than 8 bits: which values become black and white.

    Returns:
        An image of mode RGB.

    Raises:
        Rejected: The image has more than 8 bits, and nothing tells the range of its values.
    """
    profile, linear = image.info.get("icc_profile"), _is_linear(image)
    if is_deep(image):
        image = to_eight_bits(image, accepted)
    elif image.has_transparency_data:
        image = _eight_bit_key(image).convert("RGBA")
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    colours = _in_srgb(_without_alpha(image), profile)
    colours = colours.point(FROM_LINEAR * 3) if linear else colours
    if alpha is None:
        return colours
    sheet = Image.new("RGB", image.size, "white")
    sheet.paste(colours, mask=alpha)
    return sheet


def _is_linear(image: Image.Image) -> bool:
    """Whether a PNG says that its values are proportional to light, by a gamma of 1 and by nothing better."""
    better = image.info.keys() & {"icc_profile", "srgb"}
    return not better and LINEAR[0] < image.info.get("gamma", 0.0) < LINEAR[1]


def _eight_bit_key(image: Image.Image) -> Image.Image:
    """The image with the transparent colour of a 16-bit RGB PNG in 8 bits, as Pillow has its pixels."""
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image


def _without_alpha(image: Image.Image) -> Image.Image:
    if image.mode == "LA":
        return image.getchannel("L")
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Apply the profile of an image of mode L, RGB or CMYK; one that does not fit is as none."""
    if image.mode == "LAB":
        return _applied(image, _lab())
    found = transform(profile, image.mode) if profile else None
    if found is None and profile and image.mode == "L":
        image = image.convert("RGB")  # a grey image with a profile of RGB
        found = transform(profile, "RGB")
    return _applied(image, found) if found else image.convert("RGB")


def _applied(image: Image.Image, found: Any) -> Image.Image:
    converted = ImageCms.applyTransform(image, found)
    assert converted is not None
    return converted


@functools.lru_cache(64)
def transform(profile: bytes, mode: str) -> Any:
    """From the colours of an ICC profile to sRGB.

    Args:
        profile: The bytes of the profile.
        mode: Of the image: L, RGB or CMYK.

    Returns:
        What `ImageCms.applyTransform` takes; None if the profile is broken, is not for this mode, or gives
        the same colours as sRGB.
    """
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if SPACES.get(opened.profile.xcolor_space.strip()) != mode:
            return None
        found = ImageCms.buildTransform(opened, SRGB, mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC)
        return None if _is_srgb(found, mode) else found
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


@functools.cache
def _lab() -> Any:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), SRGB, "LAB", "RGB")


def _is_srgb(found: Any, mode: str) -> bool:
    """Whether a transform leaves colours as they are, within SAME."""
    steps = np.linspace(0, 255, CUBE).round().astype(np.uint8)
    if mode == "CMYK":
        return False
    if mode == "L":
        cube = Image.fromarray(steps[None])
    else:
        axes = np.meshgrid(steps, steps, steps, indexing="ij")
        cube = Image.fromarray(np.stack(axes, -1).reshape(1, -1, 3))
    there = np.asarray(_applied(cube, found), dtype=int)
    return bool(np.abs(there - np.asarray(cube.convert("RGB"), dtype=int)).max() <= SAME)
