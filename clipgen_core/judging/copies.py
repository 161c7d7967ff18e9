"""Does a picture repeat a training picture? Compared by codes, which is what the transformer could recite."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from clipgen_core.data.images import pictures_by_id
from clipgen_core.data.pixels import fit_square, to_tensor
from clipgen_core.data.tables import open_table
from clipgen_core.device import autocast
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.requests import Generated

LOOKED_AT = 4


@dataclass(frozen=True)
class Nearest:
    """The training picture most like a generated one: of the nearest by CLIP, the one with most codes in
    common. cosine: of their embeddings; same_codes: the share of positions with the same code."""

    id: str
    image: Image.Image
    cosine: float
    same_codes: float


def nearest_training(generator: TextToImage, made: Sequence[Generated], images: str) -> list[Nearest | None]:
    """The training picture most like each of the generated ones; None where those near it were pruned."""
    embedded = generator.embed_images([one.image for one in made])
    found = [generator.search(row, LOOKED_AT) for row in embedded]
    size = generator.vqgan.config.image_size
    stored = pictures_by_id(open_table(images), {id for row in found for id, _ in row})
    pictures = {id: fit_square(picture, size) for id, picture in stored.items()}
    codes = dict(zip(pictures, _codes(generator, list(pictures.values())), strict=True))
    return [
        max(
            (
                Nearest(id, pictures[id], cosine, float((codes[id] == one.codes).mean()))
                for id, cosine in row
                if id in pictures
            ),
            key=lambda near: near.same_codes,
            default=None,
        )
        for one, row in zip(made, found, strict=True)
    ]


@torch.no_grad()
def _codes(generator: TextToImage, pictures: list[Image.Image]) -> np.ndarray:
    """Codes [n, grid, grid], as the token shards have them."""
    with autocast(generator.device.type):
        parts = to_tensor(pictures).split(128)
        return torch.cat([generator.vqgan.encode(part.to(generator.device)).cpu() for part in parts]).numpy()
