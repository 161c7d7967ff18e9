"""From logits to codes: temperature, top-k, top-p, and one seed an image. Knows tensors alone."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clipgen_core.settings.sampling import SamplingConfig

LEAST = torch.finfo(torch.float32).tiny  # a lower temperature is 0


class Filters(NamedTuple):
    """What is done with the logits of some rows.

    greedy: Whether some row has temperature 0.
    top_k: The largest top-k of a row that is below the number of codes; 0: there is none.
    top_p: Whether some row has a top-p below 1.
    """

    greedy: bool
    top_k: int
    top_p: bool

    @classmethod
    def of(cls, configs: Sequence[SamplingConfig], codes: int) -> "Filters":
        """What rows of these settings need.

        Args:
            configs: Of the rows.
            codes: The number of codes k.

        Returns:
            The same value for all sets of rows that need the same.
        """
        return cls(
            any(one.temperature < LEAST for one in configs),
            max((one.top_k for one in configs if one.top_k < codes), default=0),
            any(one.top_p < 1 for one in configs),
        )


def settings_of(configs: Sequence[SamplingConfig]) -> Tensor:
    """How the codes of rows are chosen: guidance scale, temperature, top-k and top-p, float32 [n, 4]."""
    rows = [[one.guidance_scale, one.temperature, one.top_k, one.top_p] for one in configs]
    return torch.tensor(rows, dtype=torch.float32)


def uniform_draws(seeds: Sequence[int], count: int) -> np.ndarray:
    """Uniform random numbers, each row from a seed of its own.

    Args:
        seeds: One a row [n].
        count: Numbers a row.

    Returns:
        float32 [n, count] in [0, 1).
    """
    return np.stack([np.random.default_rng(seed).random(count, np.float32) for seed in seeds])


def choose(logits: Tensor, uniform: Tensor, settings: Tensor, filters: Filters) -> Tensor:
    """The next codes of each row: drawn, or the likeliest ones where the temperature is 0.

    Args:
        logits: Of p codes a row, float32 [n, p, k].
        uniform: Float [n, p] in [0, 1).
        settings: As `settings_of` gives them, float32 [n, 4].
        filters: What these rows need.

    Returns:
        int64 [n, p].
    """
    temperature = settings[:, 1].view(-1, 1, 1)
    highest = logits.amax(dim=-1, keepdim=True)  # so that a low temperature does not overflow
    drawn = draw(filter_logits((logits - highest) / temperature.clamp(min=LEAST), settings, filters), uniform)
    if not filters.greedy:
        return drawn
    return torch.where(temperature[:, 0] < LEAST, logits.argmax(dim=-1), drawn)


def filter_logits(logits: Tensor, settings: Tensor, filters: Filters) -> Tensor:
    """Keep each row's `top_k` likeliest codes (0 keeps all), then the fewest that hold its `top_p`.

    Args:
        logits: Float [n, p, k].
        settings: As `settings_of` gives them, float32 [n, 4].
        filters: What these rows need.

    Returns:
        Float [n, p, k], minus infinity for the others.
    """
    if filters.top_k:
        top_k = settings[:, 2].long().view(-1, 1, 1)
        some = (top_k > 0) & (top_k < logits.shape[-1])
        highest = logits.topk(filters.top_k, dim=-1).values
        index = torch.where(some, top_k - 1, 0).expand(-1, logits.shape[1], -1)
        logits = logits.masked_fill(some & (logits < highest.gather(-1, index)), -torch.inf)
    if filters.top_p:
        top_p = settings[:, 3].view(-1, 1, 1)
        ordered, index = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        beyond = (probabilities.cumsum(dim=-1) - probabilities >= top_p) & (top_p < 1)
        logits = logits.masked_fill(beyond.scatter(-1, index, beyond), -torch.inf)
    return logits


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draw codes by the inverse of the cumulative distribution.

    Args:
        logits: Float [..., k].
        uniform: Float [...] in [0, 1).

    Returns:
        int64 [...].
    """
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)
    target = uniform.double().unsqueeze(-1) * cumulative[..., -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)
