"""The trainings of a recipe without data, to count their memory and to time their steps.

Knows the tasks of the stages; knows nothing of what is counted.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.loss import ClipLoss
from torch import Tensor, nn

from clipgen_core.models.clip import ClipEncoder
from clipgen_core.models.discriminator import PatchDiscriminator
from clipgen_core.models.layout import Layout
from clipgen_core.models.transformer import Transformer
from clipgen_core.models.vqgan import Vqgan
from clipgen_core.recipes import Recipe
from clipgen_core.stages.clip import MEAN, STD, ClipTask
from clipgen_core.stages.transformer import TransformerTask
from clipgen_core.stages.vqgan import VqganTask
from clipgen_core.training.batches import Batch
from clipgen_core.training.contrast import WORDS
from clipgen_core.training.losses import ClipFeatureDistance, Lpips
from clipgen_core.training.orders import draw_order
from clipgen_core.training.task import Metrics


class Watched:
    """A training that notes the live bytes after the backward passes of its first loss.

    Attributes:
        live: Gives the bytes at present.
        live_after: What it gave then; 0 before.
    """

    live: Callable[[], int]
    live_after = 0

    def losses(self, batch: Any, progress: float) -> Iterator[tuple[str, Tensor, Metrics]]:
        """Those of the training, between which the live bytes are noted.

        Args:
            batch: As `few` returns it.
            progress: The share of training that is done.

        Yields:
            Name, loss and metrics.
        """
        for loss in super().losses(batch, progress):  # type: ignore[misc]
            yield loss
            self.live_after = self.live_after or self.live()

    @staticmethod
    def nothing() -> int:
        return 0


class ClipWithoutImages(ClipTask):
    """A training of the recipe's own CLIP without images.

    Args:
        recipe: The settings of all stages.
        device: Of the model.
    """

    def __init__(self, recipe: Recipe, device: str) -> None:
        self.config = config = recipe.clip
        with torch.device(device):
            self.model = open_clip.CLIP(**config.open_clip_config(config.patch_dropout))
            self.mean_std = [torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD)]
        self.contrast, self.extras = ClipLoss(), {}

    def few(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """A batch of so many rows."""
        size, length = self.config.image_size, self.config.context_length
        images = torch.zeros(rows, 3, size, size, dtype=torch.uint8)
        return images, torch.randint(9, 99, (rows, length)), torch.zeros(rows, WORDS)


class VqganWithoutImages(Watched, VqganTask):
    """A training of the VQGAN without images.

    Args:
        recipe: The settings of all stages.
        clip: Measures perceptual distance.
        device: Of the models.
    """

    def __init__(self, recipe: Recipe, clip: ClipEncoder, device: str) -> None:
        self.config = config = recipe.vqgan
        self.live = self.nothing
        with torch.device(device):
            self.model = self.vqgan = Vqgan(config.model)
            self.discriminator = PatchDiscriminator(config.discriminator_width, config.discriminator_layers)
        self.vqgan.set_recompute(config.recompute)
        self.extras = {"discriminator": self.discriminator}
        self.clip = clip
        self.distance = ClipFeatureDistance(self.clip, config.perceptual_blocks)
        if config.lpips_weights:
            self.distance = Lpips(config.lpips_weights).to(clip.device)

    def modules(self) -> list[nn.Module]:
        """All models."""
        return [self.vqgan, self.discriminator, self.clip.model, self.distance]

    def few(self, rows: int) -> Tensor:
        """A batch of so many rows."""
        size = self.config.model.image_size
        return torch.zeros(rows, 3, size, size, dtype=torch.uint8)

    def after_step(self, step: int) -> Metrics:
        self.vqgan.quantizer.passes.clear()
        return {}  # what the codebook learns depends on values, and takes little


class TransformerWithoutShards(Watched, TransformerTask):
    """A training of the transformer without token shards; as `VqganWithoutImages`."""

    def __init__(self, recipe: Recipe, clip: ClipEncoder, device: str) -> None:
        self.config = config = recipe.transformer
        self.live = self.nothing
        shape = recipe.vqgan.model
        with torch.device(device):
            vqgan = Vqgan(shape)
            self.model = self.transformer = Transformer(
                config.model, shape.quantizer.codebook_size, shape.grid, clip.dim, config.gap
            )
        self.transformer.recompute = config.recompute
        self.extras = {}
        self.vqgan, self.clip = vqgan.eval().requires_grad_(False), clip

    def modules(self) -> list[nn.Module]:
        """All models."""
        return [self.transformer, self.vqgan, self.clip.model]

    def few(self, rows: int) -> Batch:
        """A batch of so many rows."""
        config, count = self.config, self.transformer.positions
        raster, dim = config.model.order == "raster", self.transformer.embedding_dim
        codes = torch.zeros(rows, count, dtype=torch.long)
        return Batch(
            codes,
            codes[:, :-1].clone() if raster else codes.clone(),
            torch.zeros(rows, dim),
            torch.zeros(rows, dim),
            torch.zeros(rows, config.model.neighbours, dim),
            torch.zeros(rows, dtype=torch.bool),
            None if raster else self._layout(rows, count),
        )

    def _layout(self, rows: int, count: int) -> Layout:
        tokens = draw_order(np.random.default_rng(0), self.config.model.order, count, 0.0)
        one = Layout.stack([tokens])
        return Layout(*(part.repeat(rows, 1) for part in (one.positions, one.targets, one.steps)))
