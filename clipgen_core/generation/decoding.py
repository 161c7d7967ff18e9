"""Codes to images, whole or as far as they are sampled."""

import torch
from PIL import Image
from torch import Tensor

from clipgen_core.data.pixels import to_images
from clipgen_core.models.vqgan import Vqgan

DECODED_AT_ONCE = 64
GREY = (128, 128, 128)


@torch.no_grad()
def decode(vqgan: Vqgan, codes: Tensor) -> list[Image.Image]:
    """The images of grids of codes.

    Args:
        vqgan: Whose codes they are.
        codes: int64 [n, t], row by row of the grid.

    Returns:
        RGB images.
    """
    side = vqgan.config.grid
    parts = codes.view(-1, side, side).split(DECODED_AT_ONCE)
    return [image for part in parts for image in to_images(vqgan.decode(part))]


def decode_partly(vqgan: Vqgan, codes: Tensor) -> list[Image.Image]:
    """The images of grids that are still being sampled: the rows begun so far, grey below.

    Args:
        vqgan: Whose codes they are.
        codes: int64 [n, 1..t].

    Returns:
        RGB images.
    """
    done, side = codes.shape[1], vqgan.config.grid
    filled = torch.cat([codes, codes[:, -1:].expand(-1, side**2 - done)], dim=1)
    images = decode(vqgan, filled)
    begun = -(-done // side) * vqgan.config.image_size // side
    for image in images:
        image.paste(GREY, (0, begun, image.width, image.height))
    return images
