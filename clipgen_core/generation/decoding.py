"""Codes to images, whole or as far as they are known."""

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
        codes: int64 [n, t], row by row of the VQGAN's grid, or grids of any size, [n, h, w].

    Returns:
        RGB images.
    """
    side = vqgan.config.grid
    grids = codes if codes.dim() == 3 else codes.view(-1, side, side)
    parts = grids.split(DECODED_AT_ONCE)
    return [image for part in parts for image in to_images(vqgan.decode(part))]


def decode_partly(vqgan: Vqgan, codes: Tensor) -> list[Image.Image]:
    """The images of grids that are still being sampled.

    An unknown code is replaced by the nearest known one, so that the image gets sharper as more are known.
    Where codes come row by row, what lies below the row begun is grey.

    Args:
        vqgan: Whose codes they are.
        codes: int64 [n, t], -1 where a code is not known yet, at the same positions of every row.

    Returns:
        RGB images.
    """
    side = vqgan.config.grid
    known = (codes[0] >= 0).nonzero().flatten()
    place = torch.stack([torch.arange(side**2) // side, torch.arange(side**2) % side], dim=1).float()
    nearest = known[torch.cdist(place, place[known.cpu()]).argmin(dim=1)]
    images = decode(vqgan, codes[:, nearest])
    if known[-1] == len(known) - 1:
        begun = -(-len(known) // side) * vqgan.config.image_size // side
        for image in images:
            image.paste(GREY, (0, begun, image.width, image.height))
    return images
