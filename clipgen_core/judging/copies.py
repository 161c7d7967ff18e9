"""Find memorised copies: generated images that share most of their codes with a training image.

Images are compared by codes, because codes are what a transformer memorises. It is trained on every view of
an image (the whole one and random crops), so all views that the table of codes holds are compared.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import lance
import numpy as np
import torch
from PIL import Image

from clipgen_core.data.images import images_by_id
from clipgen_core.data.pixels import fit_square, to_tensor
from clipgen_core.data.tables import find_table, one_of, open_table
from clipgen_core.device import autocast
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.requests import Generated
from clipgen_core.schema import TokenManifest, codes_fingerprint
from clipgen_core.storage import Storage
from clipgen_core.training.checkpoint import Checkpoint

CANDIDATES = 16  # nearest training images by CLIP, whose codes are compared
AT_ONCE = 64

Codes = dict[str, np.ndarray]  # by image id: [views, t]


@dataclass(frozen=True)
class Nearest:
    """The training image nearest to a generated one: of the nearest by CLIP, the one with most common codes.

    Attributes:
        id: Id of the training image.
        image: The training image, cropped to its central square and resized as for the VQGAN.
        cosine: Cosine of the CLIP embeddings of both images.
        same_codes: Share of grid positions at which the generated image has the same code as one of the
            training image's views: of the view where it is largest.
    """

    id: str
    image: Image.Image
    cosine: float
    same_codes: float


class TrainingImages:
    """The training images of a generator, with the codes that it was trained on where these are stored.

    Args:
        generator: The generator.
        images: URL of the images table; the codes are looked for in the same root.

    Attributes:
        views: How many stored views of each image are compared; None if no codes are stored, so that codes of
            the centre crops are computed.
    """

    def __init__(self, generator: TextToImage, images: str) -> None:
        self.generator, self.images = generator, images
        manifest = Checkpoint(generator.parts.transformer).codes
        self.codes = _stored_codes(manifest, images) if isinstance(manifest, TokenManifest) else None
        self.views = manifest.views if self.codes and isinstance(manifest, TokenManifest) else None

    def nearest(self, generated: Sequence[Generated]) -> list[Nearest | None]:
        """Find the nearest training image of each generated one.

        Args:
            generated: Images that the generator generated.

        Returns:
            One entry for each generated image; None if its neighbours were pruned from the images table or
            left the source, or if the generator has no table of image embeddings.
        """
        if self.generator.embeddings is None:
            return [None] * len(generated)
        embeddings = self.generator.embed_images([one.image for one in generated])
        rows = [self.generator.search(embedding, CANDIDATES) for embedding in embeddings]
        codes = self._codes(self._available({id for row in rows for id, _ in row}))
        best = [
            max(
                ((_same(codes[id], one.codes), cosine, id) for id, cosine in row if id in codes),
                default=None,
            )
            for one, row in zip(generated, rows, strict=True)
        ]
        shown = {id: image for some in self._squares({one[2] for one in best if one}) for id, image in some}
        return [
            Nearest(one[2], shown[one[2]], one[1], one[0]) if one and one[2] in shown else None
            for one in best
        ]

    def _available(self, ids: Collection[str]) -> list[str]:
        """Those that the images table still holds."""
        stored = open_table(self.images).to_table(columns=["id"], filter=one_of("id", sorted(ids)))
        return sorted(stored["id"].to_pylist())

    def _codes(self, ids: Sequence[str]) -> Codes:
        if self.codes is None or self.views is None:
            return {id: grid for some in self._squares(ids) for id, grid in self._encoded(some)}
        rows = self.codes.to_table(columns=["id", "codes"], filter=one_of("id", ids))
        values = rows["codes"].combine_chunks().flatten().to_numpy()
        views = values.reshape(rows.num_rows, self.views, -1)
        return dict(zip(rows["id"].to_pylist(), views, strict=True))

    def _squares(self, ids: Collection[str]) -> Iterator[list[tuple[str, Image.Image]]]:
        """Images by id, as the VQGAN sees them whole, some at once."""
        table, ordered = open_table(self.images), sorted(ids)
        size = self.generator.vqgan.config.image_size
        for start in range(0, len(ordered), AT_ONCE):
            stored = images_by_id(table, ordered[start : start + AT_ONCE])
            yield [(id, fit_square(image, size)) for id, image in stored.items()]

    @torch.no_grad()
    def _encoded(self, images: list[tuple[str, Image.Image]]) -> Iterator[tuple[str, np.ndarray]]:
        """Codes [1, t], computed as for the token shards."""
        device = self.generator.device
        with autocast(device.type):
            batch = to_tensor([image for _, image in images]).to(device)
            codes = self.generator.vqgan.encode(batch).cpu().numpy()
        yield from ((id, grid.reshape(1, -1)) for (id, _), grid in zip(images, codes, strict=True))


def _stored_codes(manifest: TokenManifest, images: str) -> lance.LanceDataset | None:
    fingerprint = codes_fingerprint(manifest.vqgan_digest, manifest.views, manifest.smallest_crop)
    return find_table(Storage(images.rpartition("/")[0]).codes(fingerprint))


def _same(views: np.ndarray, grid: np.ndarray) -> float:
    """The largest share of equal codes: views [views, t] against one grid."""
    return float((views == grid.reshape(-1)).mean(axis=1).max())
