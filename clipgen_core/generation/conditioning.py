"""What stands for a prompt or an image while its codes are sampled: the ways across the text-image gap.

Knows embeddings and the statistics of the gap; knows neither models nor images.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipgen_core.data.embeddings import EmbeddingTable
from clipgen_core.errors import ClipgenError
from clipgen_core.models.gap import Gap
from clipgen_core.settings.sampling import SamplingConfig

LOWEST_TEMPERATURE = 1e-12  # lower ones give the same weights, or overflow


class Conditioner:
    """Turns embeddings into the transformer's condition.

    Args:
        gap: The statistics of text and image embeddings, in float32, on the device of the conditions.
        table: The image embeddings that prompts are matched with, where the model has them.
        neighbours: How many neighbour embeddings the transformer takes beside the embedding itself.
    """

    def __init__(self, gap: Gap, table: EmbeddingTable | None, neighbours: int) -> None:
        self.gap, self._table, self.neighbours = gap, table, neighbours

    def of_text(self, text: np.ndarray, config: SamplingConfig) -> Tensor:
        """The conditions of a prompt; candidates take them in turn.

        Text and image embeddings lie in different parts of CLIP's space, and the transformer has been trained
        on image embeddings only. `SamplingConfig.condition` chooses a way across.

        Args:
            text: The prompt's embedding, float32 [d], of length 1.
            config: Which way, and how many of the nearest images it uses.

        Returns:
            float32 [choices, 1 + neighbours, d].

        Raises:
            ClipgenError: The way needs image embeddings, and the model has none.
        """
        if config.condition == "nearest":
            found = self.table.nearest(text, config.neighbours).vectors
            return torch.stack(
                [self._with_neighbours(self._tensor(one), text, self.gap.image) for one in found]
            )
        if config.condition == "retrieval":
            mean = self._mean_of_nearest(text, config)
            return self._with_neighbours(mean, text, self.gap.image).unsqueeze(0)
        prepare = self.gap.text if config.condition == "text" else self.gap.shifted
        return self._with_neighbours(self._tensor(text), text, prepare).unsqueeze(0)

    def of_image(self, embedding: np.ndarray) -> Tensor:
        """The condition of an image: its own embedding, as in training, so there is no gap to cross.

        Args:
            embedding: float32 [d], of length 1.

        Returns:
            float32 [1, 1 + neighbours, d].
        """
        return self._with_neighbours(self._tensor(embedding), embedding, self.gap.image).unsqueeze(0)

    @property
    def table(self) -> EmbeddingTable:
        """The image embeddings that prompts are matched with.

        Raises:
            ClipgenError: The model has none.
        """
        if self._table is None:
            raise ClipgenError(
                "this model has no table of image embeddings to retrieve from: "
                "use --condition text, or save it again with the embeddings of your images"
            )
        return self._table

    def _with_neighbours(
        self, embedding: Tensor, query: np.ndarray, prepare: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """[1 + neighbours, d]: the prepared embedding, and the images nearest to the query."""
        rows = [prepare(embedding)]
        if self.neighbours:
            rows += list(self.gap.image(self._tensor(self.table.nearest(query, self.neighbours).vectors)))
        return torch.stack(rows)

    def _mean_of_nearest(self, text: np.ndarray, config: SamplingConfig) -> Tensor:
        found = self.table.nearest(text, config.neighbours)
        cosine = torch.from_numpy(found.cosine.copy()).double()
        temperature = max(config.neighbour_temperature, LOWEST_TEMPERATURE)
        weight = (cosine / temperature).softmax(dim=0).float()
        return F.normalize(weight @ torch.tensor(found.vectors), dim=0).to(self._device)

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.copy()).to(self._device)

    @property
    def _device(self) -> torch.device:
        return self.gap.image_mean.device
