"""The orders in which a training step predicts the codes of its rows: drawn anew for every row."""

import numpy as np

from clipgen_core.models.layout import group_sizes, tokens_of

FEWEST = 1 / 16  # steps of a row are drawn from this share of its codes up to one a code
GIVEN = 0.2  # share of the rows of which a part is given, as in editing
ANNEALED = 0.5, 0.75  # of the training: random orders become raster order between these (RAR, section 3.3)


def predicted_share(order: str) -> float:
    """The share of a row's codes that are predicted, and not given, on average over many rows."""
    return 1 - GIVEN / 2 if order == "any" else 1.0


def draw_order(rng: np.random.Generator, order: str, count: int, progress: float) -> np.ndarray:
    """The tokens of one row.

    Args:
        rng: Of the row.
        order: Of the model. `annealed`: one code a step, in a random order with a probability that falls
            from 1 to 0, else in raster order. `any`: in a random order, in groups of random sizes.
        count: Codes of the grid.
        progress: Share of the training that is done.

    Returns:
        Positions, targets and steps, int64 [3, count], for `Layout`.
    """
    if order == "annealed":
        first, last = ANNEALED
        raster = rng.random() < (progress - first) / (last - first)
        return tokens_of(np.arange(count) if raster else rng.permutation(count), [0] + [1] * count)
    given = int(rng.integers(1, count)) if rng.random() < GIVEN else 0
    free = count - given
    steps = max(round(free * FEWEST ** rng.random()), 1)
    return tokens_of(rng.permutation(count), [given, *group_sizes(free, steps)], count)
