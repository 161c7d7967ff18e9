"""From logits to codes: temperature, top-k, top-p, and one seed an image. Knows tensors alone."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clipgen_core.settings.sampling import SamplingConfig


def uniform_draws(seeds: Sequence[int], count: int) -> np.ndarray:
    """Uniform random numbers, each row from a seed of its own.

    Args:
        seeds: One a row [n].
        count: Numbers a row.

    Returns:
        float32 [n, count] in [0, 1).
    """
    return np.stack([np.random.default_rng(seed).random(count, np.float32) for seed in seeds])


def choose(logits: Tensor, uniform: Tensor, config: SamplingConfig) -> Tensor:
    """The next code of each row: drawn, or the likeliest one where the temperature is 0.

    Args:
        logits: Float32 [n, k].
        uniform: Float [n] in [0, 1).
        config: Temperature, top-k and top-p.

    Returns:
        int64 [n].
    """
    if config.temperature < torch.finfo(logits.dtype).tiny:  # the division would give no numbers
        return logits.argmax(dim=-1)
    highest = logits.amax(dim=-1, keepdim=True)  # so that a low temperature does not overflow
    return draw(filter_logits((logits - highest) / config.temperature, config), uniform)


def filter_logits(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Keep the `top_k` likeliest codes (0 keeps all), then the fewest that hold the probability `top_p`.

    Args:
        logits: Float [n, k].
        config: Says how many.

    Returns:
        Float [n, k], minus infinity for the others.
    """
    if 0 < config.top_k < logits.shape[-1]:
        least = logits.topk(config.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if config.top_p < 1.0:
        ordered, index = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        beyond = probabilities.cumsum(dim=-1) - probabilities >= config.top_p
        logits = logits.masked_fill(beyond.scatter(-1, index, beyond), -torch.inf)
    return logits


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draw codes by the inverse of the cumulative distribution.

    Args:
        logits: Float [n, k].
        uniform: Float [n] in [0, 1).

    Returns:
        int64 [n].
    """
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)
    target = uniform.double().unsqueeze(1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)
