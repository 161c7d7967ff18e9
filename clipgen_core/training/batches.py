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
    condition: float32 [n, 1 + neighbours, d].
    dropped: rows that are trained without the condition, bool [n].
    embedding: the clean embeddings, float32 [n, d].
    layout: of the rows, where the order is not raster.
    """

    codes: Tensor
    inputs: Tensor
    condition: Tensor
    dropped: Tensor
    embedding: Tensor
    layout: Layout | None


class CodeBatches:
    """Makes the batches of a training.

    Args:
        config: Of the stage.
        shards: Codes and embeddings.
        gap: How embeddings are prepared.
        device: Gets the batches.
    """

    def __init__(self, config: Config, shards: TokenShards, gap: Gap, device: str | torch.device) -> None:
        self.config, self.shards, self.gap, self.device = config, shards, gap, device
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
            The rows.
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
        numbers, noise, dropped = map(share.take, (numbers, noise, dropped))
        rows = self.shards.take(numbers)
        codes = rows.codes.astype("int64")
        inputs = torch.from_numpy(np.where(share.take(corrupted), share.take(random_codes), codes[:, :count]))
        layout = None if raster else self._layout(step, share.take(range(size)))
        embedding = torch.from_numpy(rows.embeddings).to(self.device)
        return Batch(
            torch.from_numpy(codes).to(self.device),
            (layout.held(inputs) if layout else inputs).to(self.device),
            self._condition(embedding, numbers, torch.from_numpy(noise).to(self.device)),
            torch.from_numpy(dropped).to(self.device),
            embedding,
            layout.to(self.device) if layout else None,
        )

    def _layout(self, step: int, rows: range) -> Layout:
        """Orders of rows of a step, each drawn from (seed, step, row)."""
        train, count = self.config.train, self.shards.manifest.grid**2
        generators = (np.random.default_rng([train.seed, step, 1, row]) for row in rows)
        progress = step / train.steps
        return Layout.stack([draw_order(rng, self.config.model.order, count, progress) for rng in generators])

    def _condition(self, embedding: Tensor, numbers: np.ndarray, noise: Tensor) -> Tensor:
        noisy = self.gap.noisy(self.gap.image(embedding), noise).unsqueeze(1)
        if self.nearest is None:
            return noisy
        nearest = self.shards.take(self.nearest[numbers].ravel()).embeddings
        neighbours = self.gap.image(torch.from_numpy(nearest).to(self.device))
        return torch.cat([noisy, neighbours.view(len(noisy), -1, noisy.shape[-1])], dim=1)

    def held_out(self) -> tuple[Tensor, Tensor]:
        """The codes of the held-out images, int64 [n, t], and their conditions without noise, float32
        [n, 1 + neighbours, d], whose neighbours are training images."""
        rows = self.shards.validation()
        codes, embeddings = torch.from_numpy(rows.codes.astype("int64")), torch.from_numpy(rows.embeddings)
        condition = self.gap.image(embeddings.to(self.device)).unsqueeze(1)
        if self.embeddings is not None:
            training = torch.from_numpy(self.embeddings)
            nearest = (embeddings @ training.T).topk(self.config.model.neighbours, dim=1).indices
            condition = torch.cat([condition, self.gap.image(training[nearest].to(self.device))], dim=1)
        return codes.to(self.device), condition
