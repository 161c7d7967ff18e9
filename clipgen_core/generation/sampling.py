"""Sampling codes: guidance, temperature, top-k, top-p, one seed an image, a key-value cache.

Knows how to call the transformer; knows neither what conditions it nor what the codes show.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from clipgen_core.generation.steps import steps_of
from clipgen_core.models.layout import NONE
from clipgen_core.models.transformer import Transformer
from clipgen_core.settings.sampling import SamplingConfig


@torch.no_grad()
def sample_codes(
    model: Transformer,
    embeddings: Tensor,
    seeds: Sequence[int],
    config: SamplingConfig,
    *,
    known: Tensor | None = None,
    on_step: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Sample one grid of codes a row.

    A row's codes depend on its embedding, its seed and its known codes, not on the other rows.

    Args:
        model: In evaluation mode.
        embeddings: The conditions, float [n, 1 + neighbours, d], as `Conditioner` gives them.
        seeds: One a row.
        config: Steps, guidance, temperature, top-k and top-p.
        known: Codes that are given, int64 [n, t], -1 at the same positions of every row where a code is to
            be sampled; only for models of any order.
        on_step: Called with the codes so far, int64 [n, t], -1 where there is none yet; an error that it
            raises ends the sampling.

    Returns:
        int64 [n, t].

    Raises:
        ClipgenError: The model cannot take so many steps, or no known codes.
    """
    device, rows, guided = embeddings.device, len(embeddings), config.guidance_scale != 1.0
    draws = torch.from_numpy(uniform_draws(seeds, model.positions)).to(device)
    embeddings = embeddings.to(model.gap.image_mean.dtype)
    conditions = embeddings.repeat(2, 1, 1) if guided else embeddings
    dropped = torch.arange(len(conditions), device=device) >= rows
    cache = model.new_cache(len(conditions))
    codes = torch.full((rows, model.positions), NONE, device=device) if known is None else known.clone()
    for targets, layout in steps_of(model, config.steps, known):
        held = codes[:, targets[0] - 1 : targets[0]] if layout is None else layout.held(codes)
        logits = model(held.repeat(2, 1) if guided else held, conditions, cache, dropped, layout)
        logits = logits[:, : len(targets)].float()
        if guided:
            with_condition, without = logits.chunk(2)
            logits = without + config.guidance_scale * (with_condition - without)
        codes[:, targets] = choose(logits.flatten(0, 1), draws[:, targets].flatten(), config).view(rows, -1)
        if on_step:
            on_step(codes.clone())
    return codes


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
