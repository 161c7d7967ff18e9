"""Decode the bytes of an image file to an RGB image, or say why it cannot be used; and convert images.

The format is read from the content, never from the file's name. Knows nothing of folders or tables.
"""

import io
import json
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


class Rejected(Exception):
    """An image that cannot be used.

    Args:
        reason: Empty, not_an_image, damaged, too_large or too_small.
        detail: An explanation for people.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Decoded:
    """A decoded image (RGB, upright, the first frame, composited on white) and the name of its format."""

    image: Image.Image
    format: str


def decode(data: bytes, *, max_pixels: int = 2**26, min_side: int = 1) -> Decoded:
    """Decode an image file.

    Handles palettes, CMYK, 16-bit grey, transparency, EXIF orientation and animations (their first frame).
    The size in the header is checked before any pixel is decoded.

    Args:
        data: The file's bytes.
        max_pixels: The largest allowed width times height.
        min_side: The smallest allowed width and height, in pixels.

    Returns:
        The image and its format.

    Raises:
        Rejected: The image cannot be used; see its reasons.
    """
    if not data:
        raise Rejected("empty", "the file has no bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = _open(data)
        if image.width * image.height > max_pixels:
            size = f"{image.width}x{image.height}"
            raise Rejected("too_large", f"{size} is more than {max_pixels} pixels")
        if min(image.size) < min_side:
            raise Rejected("too_small", f"{image.width}x{image.height}, at least {min_side} needed")
        try:
            image.load()
            upright = ImageOps.exif_transpose(image)
            return Decoded(to_rgb(upright), image.format or "")
        except Exception as error:
            raise Rejected("damaged", f"{type(error).__name__}: {error}") from error


def decode_stored(data: bytes) -> Image.Image:
    """Decode an image of the images table, whose size was checked when it was ingested."""
    return decode(data, max_pixels=sys.maxsize).image


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise Rejected("too_large", str(error)) from error
    except UnidentifiedImageError as error:
        raise Rejected("not_an_image", f"none of {', '.join(FORMATS)}") from error
    except Exception as error:
        raise Rejected("damaged", f"{type(error).__name__}: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB with 8 bits a channel; transparent images are composited on white."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        depth = 65535.0 if image.mode.startswith("I") else max(float(values.max()), 1.0)
        image = Image.fromarray(np.clip(values / depth * 255, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def fit_square(image: Image.Image, size: int) -> Image.Image:
    """Crop the central square and resize it.

    Args:
        image: An image of any size.
        size: Side of the result, in pixels.

    Returns:
        An image of `size` x `size` pixels.
    """
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)


def random_crop(image: Image.Image, size: int, smallest: float, seed: int) -> Image.Image:
    """Crop a random square and resize it; half of the crops are mirrored.

    Args:
        image: An image of any size.
        size: Side of the result, in pixels.
        smallest: The smallest side of the crop, as a share of the image's short side.
        seed: Determines the crop.

    Returns:
        An image of `size` x `size` pixels.
    """
    rng = np.random.default_rng(seed)
    side = round(min(image.size) * rng.uniform(smallest, 1.0))
    left = int(rng.integers(image.width - side + 1))
    top = int(rng.integers(image.height - side + 1))
    box = (left, top, left + side, top + side)
    crop = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return ImageOps.mirror(crop) if rng.random() < 0.5 else crop


def to_tensor(images: list[Image.Image]) -> Tensor:
    """Convert RGB images of one size to float32 [n, 3, h, w] in [-1, 1], in channels-last memory format.

    This uses NumPy because batches are loaded in a thread of their own: PyTorch would start a second team of
    OpenMP threads there, with which a training step on two cores takes a quarter longer.
    """
    values = np.stack([np.asarray(image) for image in images]).astype(np.float32)
    values /= 127.5
    values -= 1
    return torch.from_numpy(values).permute(0, 3, 1, 2)


def to_images(tensor: Tensor) -> list[Image.Image]:
    """Convert float [n, 3, h, w] in [-1, 1] to RGB images; values beyond are clamped."""
    values = tensor.detach().float().clamp(-1, 1).add(1).mul(127.5).round()
    arrays = values.byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in arrays]


def grid(images: list[Image.Image], columns: int, gap: int = 2) -> Image.Image:
    """Arrange images of one size in a grid on white.

    Args:
        images: At least one image; all have the size of the first.
        columns: Images in a row.
        gap: Pixels between images.

    Returns:
        One RGB image.
    """
    columns = min(columns, len(images))
    width, height = images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), (255, 255, 255))
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * (width + gap), i // columns * (height + gap)))
    return sheet


PARAMETERS = "parameters"  # keyword of the PNG text that holds the generation parameters, as JSON


def with_parameters(image: Image.Image, parameters: Mapping[str, Any]) -> Image.Image:
    """Attach generation parameters to an image, which `png_bytes` writes into the file.

    Args:
        image: The image, whose `info` is changed.
        parameters: Anything that JSON can hold.

    Returns:
        The same image.
    """
    image.info[PARAMETERS] = json.dumps(parameters, ensure_ascii=False)
    return image


def png_bytes(image: Image.Image) -> bytes:
    """Encode an image as a PNG file, with the parameters that `with_parameters` attached."""
    buffer, text = io.BytesIO(), PngInfo()
    if PARAMETERS in image.info:
        text.add_itxt(PARAMETERS, image.info[PARAMETERS])
    image.save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()
