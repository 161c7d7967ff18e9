"""Find memorised copies: generated images that share most of their codes with a training image.

Images are compared by codes, because codes are what a transformer memorises.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from clipgen_core.data.images import images_by_id
from clipgen_core.data.pixels import fit_square, to_tensor
from clipgen_core.data.tables import open_table
from clipgen_core.device import autocast
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.requests import Generated

CANDIDATES = 4  # nearest training images by CLIP, whose codes are compared


@dataclass(frozen=True)
class Nearest:
    """The training image nearest to a generated one: of the nearest by CLIP, the one with most common codes.

    Attributes:
        id: Id of the training image.
        image: The training image, cropped and resized as for the VQGAN.
        cosine: Cosine of the CLIP embeddings of both images.
        same_codes: Share of grid positions at which both have the same code.
    """

    id: str
    image: Image.Image
    cosine: float
    same_codes: float


def nearest_training(
    generator: TextToImage, generated: Sequence[Generated], images: str
) -> list[Nearest | None]:
    """Find the nearest training image of each generated one.

    Args:
        generator: The generator, with its table of image embeddings.
        generated: Images that it generated.
        images: URL of the images table.

    Returns:
        One entry for each generated image; None if its neighbours were pruned from the images table.

    Raises:
        ClipgenError: The generator has no table of image embeddings.
    """
    embeddings = generator.embed_images([one.image for one in generated])
    neighbours = [generator.search(row, CANDIDATES) for row in embeddings]
    size = generator.vqgan.config.image_size
    stored = images_by_id(open_table(images), {id for row in neighbours for id, _ in row})
    training = {id: fit_square(image, size) for id, image in stored.items()}
    codes = dict(zip(training, _codes(generator, list(training.values())), strict=True))
    return [
        max(
            (
                Nearest(id, training[id], cosine, float((codes[id] == one.codes).mean()))
                for id, cosine in row
                if id in training
            ),
            key=lambda near: near.same_codes,
            default=None,
        )
        for one, row in zip(generated, neighbours, strict=True)
    ]


@torch.no_grad()
def _codes(generator: TextToImage, images: list[Image.Image]) -> np.ndarray:
    """Codes [n, grid, grid], computed as for the token shards."""
    with autocast(generator.device.type):
        parts = to_tensor(images).split(128)
        return torch.cat([generator.vqgan.encode(part.to(generator.device)).cpu() for part in parts]).numpy()
