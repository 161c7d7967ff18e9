"""Decoding: any picture file's bytes to an RGB picture or to a named reason why not.

The content decides, never the file's name. Knows nothing of folders or tables.
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
    """A picture that cannot be used.

    reason: empty, not_an_image, damaged, too_large or too_small.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Picture:
    """A decoded picture: RGB, upright, first frame, transparency laid on white."""

    image: Image.Image
    format: str


def decode(data: bytes, *, max_pixels: int = 2**26, min_side: int = 1) -> Picture:
    """Decode a picture file.

    Handles palettes, CMYK, 16-bit grey, transparency, EXIF orientation and animations (first
    frame). The header's size is checked before any pixel is unpacked.

    Raises:
        Rejected: see its reasons.
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
            return Picture(to_rgb(upright), image.format or "")
        except Exception as error:
            raise Rejected("damaged", f"{type(error).__name__}: {error}") from error


def decode_stored(data: bytes) -> Image.Image:
    """A picture of the images table, which was checked when it was taken in."""
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
    """RGB, 8 bits a channel, on white where the picture is transparent."""
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
    """The central square, resized to `size` pixels a side."""
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)


def random_crop(image: Image.Image, size: int, smallest: float, seed: int) -> Image.Image:
    """A square crop of at least `smallest` of the short side, half the time mirrored, by `seed`."""
    rng = np.random.default_rng(seed)
    side = round(min(image.size) * rng.uniform(smallest, 1.0))
    left = int(rng.integers(image.width - side + 1))
    top = int(rng.integers(image.height - side + 1))
    box = (left, top, left + side, top + side)
    crop = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return ImageOps.mirror(crop) if rng.random() < 0.5 else crop


def to_tensor(images: list[Image.Image]) -> Tensor:
    """RGB pictures of one size as float32 [n, 3, h, w] in [-1, 1], channels last in memory.

    By numpy, as batches are made in a thread of their own: torch would start a second team of OpenMP threads
    there, and with two teams a training step on two cores takes a quarter longer.
    """
    values = np.stack([np.asarray(image) for image in images]).astype(np.float32)
    values /= 127.5
    values -= 1
    return torch.from_numpy(values).permute(0, 3, 1, 2)


def to_images(pictures: Tensor) -> list[Image.Image]:
    """[n, 3, h, w] in [-1, 1] as RGB pictures."""
    values = pictures.detach().float().clamp(-1, 1).add(1).mul(127.5).round()
    arrays = values.byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in arrays]


def grid(images: list[Image.Image], columns: int, gap: int = 2) -> Image.Image:
    """Pictures of one size side by side on white."""
    columns = min(columns, len(images))
    width, height = images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), (255, 255, 255))
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * (width + gap), i // columns * (height + gap)))
    return sheet


PARAMETERS = "parameters"  # the PNG text that says how a picture was made, as JSON


def with_parameters(image: Image.Image, parameters: Mapping[str, Any]) -> Image.Image:
    """The picture, with what made it in `info`, from where it goes into PNG files."""
    image.info[PARAMETERS] = json.dumps(parameters, ensure_ascii=False)
    return image


def png_bytes(image: Image.Image) -> bytes:
    """A PNG file, with the parameters that `with_parameters` gave."""
    buffer, text = io.BytesIO(), PngInfo()
    if PARAMETERS in image.info:
        text.add_itxt(PARAMETERS, image.info[PARAMETERS])
    image.save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()
