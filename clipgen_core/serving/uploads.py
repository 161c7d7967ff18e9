"""Image files of a request for an edit: the image, and where it is to change.

Knows OpenAI's masks, which are transparent there, and white ones; knows nothing of HTTP.
"""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from clipgen_core.data.decode import decode
from clipgen_core.data.rejected import Rejected
from clipgen_core.errors import ClipgenError
from clipgen_core.settings.images import Accepted

LARGEST = Accepted(max_pixels=2**25)
HALF = 128  # of 255: what is less opaque counts as transparent


def image_and_mask(image: bytes, mask: bytes | None) -> tuple[Image.Image, Image.Image]:
    """Decode an image and where it is to change.

    Args:
        image: An image file.
        mask: An image file: transparent where the image is to change, or, without any transparency, white
            there. None: the image's own transparent part is meant.

    Returns:
        The image in RGB; the mask, white where it is to change, of mode L.

    Raises:
        ClipgenError: A file is no usable image, or nothing marks what is to change.
    """
    whole = decoded("image", image)
    if mask is not None:
        shades = decoded("mask", mask).convert("L")
        return whole, _transparent(mask) or shades
    clear = _transparent(image)
    if clear is None:
        raise ClipgenError(
            "there is no mask, and the image has no transparent part: send a mask of the image's size that "
            "is transparent, or white, where the image is to change"
        )
    return whole, clear


def decoded(name: str, data: bytes) -> Image.Image:
    """Decode an image file that was sent.

    Args:
        name: What it is called, for messages.
        data: The file's bytes.

    Returns:
        The image in RGB, on white.

    Raises:
        ClipgenError: It is no usable image, or too large.
    """
    try:
        return decode(data, LARGEST).image
    except Rejected as error:
        raise ClipgenError(f"the {name} cannot be used ({error.detail}): send another file") from error


def opaque(name: str, data: bytes, size: tuple[int, int]) -> np.ndarray:
    """Where an image file is not transparent at all.

    Args:
        name: What it is called, for messages.
        data: The file's bytes.
        size: Width and height that it must have.

    Returns:
        Bool [h, w].

    Raises:
        ClipgenError: It is no usable image, or of another size.
    """
    if decoded(name, data).size != size:
        raise ClipgenError(f"the {name} has another size than the picture: paint on the picture itself")
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))[..., 3] > 0


def _transparent(data: bytes) -> Image.Image | None:
    """White where an image that can be decoded is transparent; None if it is nowhere."""
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:  # camera RAW
        return None
    if not image.has_transparency_data:
        return None
    alpha = ImageOps.exif_transpose(image.convert("RGBA")).getchannel("A")
    clear = alpha.point([255 * (value < HALF) for value in range(256)])
    return clear if clear.getbbox() else None
