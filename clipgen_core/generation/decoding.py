"""Codes to images, whole or as far as they are known."""

import itertools

import torch
from PIL import Image
from torch import Tensor

from clipgen_core.data.pixels import to_images
from clipgen_core.models.vqgan import Vqgan

DECODED_AT_ONCE = 64  # images, as far as they fit into so many bytes:
MEMORY = 2 * 1024**3
TENSORS = 6  # of the finest level, in float32, that are there at once
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
    pixels = grids[0].numel() * vqgan.config.downsampling**2 // vqgan.config.patch**2
    fit = MEMORY // (pixels * max(vqgan.config.channels[:2]) * 4 * TENSORS)
    parts = grids.split(min(max(fit, 1), DECODED_AT_ONCE))
    return [image for part in parts for image in to_images(vqgan.decode(part))]


def decode_partly(vqgan: Vqgan, codes: Tensor) -> list[Image.Image]:
    """The images of grids that are still being sampled.

    An unknown code is replaced by the nearest known one, so that the image gets sharper as more are known.
    Where codes come row by row, what lies below the row begun is grey.

    Args:
        vqgan: Whose codes they are.
        codes: int64 [n, t], -1 where a code is not known yet, at the same positions of all rows of which as
            many codes are known.

    Returns:
        RGB images.
    """
    counts = (codes >= 0).sum(dim=1).tolist()
    alike = itertools.groupby(range(len(codes)), key=lambda row: counts[row])
    return [image for count, rows in alike for image in _decode_partly(vqgan, codes[list(rows)], count)]


def _decode_partly(vqgan: Vqgan, codes: Tensor, count: int) -> list[Image.Image]:
    side, size = vqgan.config.grid, vqgan.config.image_size
    if count == 0:
        return [Image.new("RGB", (size, size), GREY) for _ in codes]
    known = (codes[0] >= 0).nonzero().flatten()
    place = torch.stack([torch.arange(side**2) // side, torch.arange(side**2) % side], dim=1).float()
    nearest = known[torch.cdist(place, place[known.cpu()]).argmin(dim=1).to(known.device)]
    images = decode(vqgan, codes[:, nearest])
    if known[-1] == count - 1:
        begun = -(-count // side) * size // side
        for image in images:
            image.paste(GREY, (0, begun, image.width, image.height))
    return images
