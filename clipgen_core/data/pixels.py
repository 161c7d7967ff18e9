"""Conversions of RGB images: crops, tensors, grids, PNG files. Knows nothing of how they were read."""

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from clipgen_core import __version__


def fit_square(image: Image.Image, size: int) -> Image.Image:
    """Crop the central square and resize it.

    Args:
        image: An image of any size.
        size: Side of the result, in pixels.

    Returns:
        An image of `size` x `size` pixels.
    """
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)


def not_longer_than(image: Image.Image, aspect: float) -> Image.Image:
    """Crop the middle of an image whose sides differ too much; others are returned as they are.

    Args:
        image: An image of any size.
        aspect: The longest side that stays, in short sides.

    Returns:
        The image or its middle.
    """
    longest = round(aspect * min(image.size))
    width, height = min(image.width, longest), min(image.height, longest)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image if (width, height) == image.size else image.crop((left, top, left + width, top + height))


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


def to_bytes(images: list[Image.Image]) -> Tensor:
    """Stack RGB images of one size: uint8 [n, 3, h, w], in channels-last memory format.

    This uses NumPy because batches are loaded in a thread of their own: PyTorch would start a second team of
    OpenMP threads there, with which a training step on two cores takes a quarter longer.
    """
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def to_float(pixels: Tensor) -> Tensor:
    """Convert uint8 [n, 3, h, w] to float32 in [-1, 1], on its device and in its memory format."""
    half = torch.full((), 127.5, device=pixels.device)  # by a number, CUDA would multiply by its reciprocal
    return pixels.float().div_(half).sub_(1)


def to_tensor(images: list[Image.Image]) -> Tensor:
    """Convert RGB images of one size to float32 [n, 3, h, w] in [-1, 1], in channels-last memory format."""
    return to_float(to_bytes(images))


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
        text.add_text("Software", f"clipgen {__version__}")
    image.save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()
