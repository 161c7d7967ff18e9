"""The rows of each training step of the transformer: codes, conditions, corruption and orders."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clipgen_core.data.embeddings import nearest_rows
from clipgen_core.data.order import WHOLE, Share
from clipgen_core.data.tokens import TokenShards
from clipgen_core.models.gap import Gap
from clipgen_core.models.layout import Layout
from clipgen_core.settings.transformer import Config
from clipgen_core.training.orders import draw_order


@dataclass(frozen=True)
class Batch:
    """Rows of a step.

    codes: the targets, int64 [n, t].
    inputs: what the tokens hold, some of it corrupted: in raster order the codes without the last, int64
        [n, t - 1], else what the layout says, int64 [n, t].
    embedding: the clean embeddings, float32 [n, d].
    noise: standard normal numbers, float32 [n, d].
    neighbours: the embeddings of the nearest training images, float32 [n, neighbours, d].
    dropped: rows that are trained without the condition, bool [n].
    layout: of the rows, where the order is not raster.
    """

    codes: Tensor
    inputs: Tensor
    embedding: Tensor
    noise: Tensor
    neighbours: Tensor
    dropped: Tensor
    layout: Layout | None


class CodeBatches:
    """Makes the batches of a training, on the CPU.

    Args:
        config: Of the stage.
        shards: Codes and embeddings.
        gap: How embeddings are prepared.
    """

    def __init__(self, config: Config, shards: TokenShards, gap: Gap) -> None:
        self.config, self.shards, self.gap = config, shards, gap
        self.embeddings = np.concatenate(list(shards.embeddings())) if config.model.neighbours else None
        self.nearest = None
        if self.embeddings is not None:
            self.nearest = nearest_rows(self.embeddings, config.model.neighbours)

    def batch(self, step: int, share: Share = WHOLE) -> Batch:
        """The rows of a step; rows, orders, corruption and noise do not depend on the number of shares.

        Args:
            step: Which batch.
            share: The part of the batch that this process computes.

        Returns:
            The rows, on the CPU.
        """
        config, manifest, size = self.config, self.shards.manifest, self.config.train.batch_size
        raster = config.model.order == "raster"
        numbers = self.shards.order.batch(step, size)
        rng = np.random.default_rng([config.train.seed, step])
        count = manifest.grid**2 - (1 if raster else 0)
        corrupted = rng.random((size, count)) < rng.random((size, 1)) * config.corrupt
        random_codes = rng.integers(manifest.codebook_size, size=(size, count))
        noise = rng.standard_normal((size, manifest.embedding_dim), np.float32)
        dropped = rng.random(size) < config.drop_condition
        numbers, noise, dropped = (np.ascontiguousarray(share.take(one)) for one in (numbers, noise, dropped))
        rows = self.shards.take(numbers)
        codes = rows.codes.astype("int64")
        inputs = torch.from_numpy(np.where(share.take(corrupted), share.take(random_codes), codes[:, :count]))
        layout = None if raster else self._layout(step, share.take(range(size)))
        return Batch(
            torch.from_numpy(codes),
            layout.held(inputs) if layout else inputs,
            torch.from_numpy(rows.embeddings),
            torch.from_numpy(noise),
            self._neighbours(numbers),
            torch.from_numpy(dropped),
            layout,
        )

    def _layout(self, step: int, rows: range) -> Layout:
        """Orders of rows of a step, each drawn from (seed, step, row)."""
        train, count = self.config.train, self.shards.manifest.grid**2
        generators = (np.random.default_rng([train.seed, step, 1, row]) for row in rows)
        progress = step / train.steps
        return Layout.stack([draw_order(rng, self.config.model.order, count, progress) for rng in generators])

    def _neighbours(self, numbers: np.ndarray) -> Tensor:
        if self.nearest is None:
            return torch.empty(len(numbers), 0, self.shards.manifest.embedding_dim)
        nearest = self.shards.take(self.nearest[numbers].ravel()).embeddings
        return torch.from_numpy(nearest).view(len(numbers), -1, nearest.shape[-1])

    def held_out(self, device: str | torch.device) -> tuple[Tensor, Tensor]:
        """The held-out images, whose neighbours are training images, without noise.

        Args:
            device: Gets them.

        Returns:
            Their codes, int64 [n, t], and their conditions, float32 [n, 1 + neighbours, d].
        """
        rows = self.shards.validation()
        codes, embeddings = torch.from_numpy(rows.codes.astype("int64")), torch.from_numpy(rows.embeddings)
        condition = self.gap.image(embeddings.to(device)).unsqueeze(1)
        if self.embeddings is not None:
            training = torch.from_numpy(self.embeddings)
            nearest = (embeddings @ training.T).topk(self.config.model.neighbours, dim=1).indices
            condition = torch.cat([condition, self.gap.image(training[nearest].to(device))], dim=1)
        return codes.to(device), condition


def condition_of(batch: Batch, gap: Gap) -> Tensor:
    """The noisy embeddings of a batch and the neighbour embeddings, always computed in fp32.

    Args:
        batch: On the device of the gap's statistics.
        gap: How embeddings are prepared.

    Returns:
        Float32 [n, 1 + neighbours, d].
    """
    with torch.autocast(batch.embedding.device.type, enabled=False):
        noisy = gap.noisy(gap.image(batch.embedding), batch.noise)
        return torch.cat([noisy.unsqueeze(1), gap.image(batch.neighbours)], dim=1)
