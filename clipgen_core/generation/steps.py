"""The steps in which a model generates: which positions it predicts in each."""

import functools
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from clipgen_core.errors import ClipgenError
from clipgen_core.models.layout import NONE, Layout, group_sizes, tokens_of
from clipgen_core.models.transformer import Transformer
from clipgen_core.training.losses import code_cross_entropy


def steps_of(
    model: Transformer, steps: int, known: Tensor | None = None
) -> list[tuple[list[int], Layout | None]]:
    """The steps in which a model samples a grid.

    Args:
        model: Its order decides.
        steps: How many at most; 0 for the default.
        known: Given codes, int64 [n, t], -1 where there is none.

    Returns:
        For each step the positions that it predicts, and the tokens of a model that is not of raster order,
        whose targets come first.

    Raises:
        ClipgenError: The model cannot take so many steps, or no known codes.
    """
    given = () if known is None else tuple((known[0] != NONE).nonzero().flatten().tolist())
    if model.raster:
        _require_one_a_step(model, steps, given)
        return [([position], None) for position in range(model.positions)]
    layout = layout_of(model, steps, given)
    each = [layout.of_step(step) for step in range(int(layout.steps.max()) + 1)]
    return [([position for position in one.targets[0].tolist() if position != NONE], one) for one in each]


def layout_of(model: Transformer, steps: int, known: tuple[int, ...] = ()) -> Layout:
    """The tokens by which a model that is not of raster order generates an image, for all rows alike.

    Args:
        model: Its order decides.
        steps: How many at most; 0 for the default, twice the grid's side.
        known: Positions whose codes are given.

    Returns:
        The tokens of one row, on the model's device.

    Raises:
        ClipgenError: The model cannot take so many steps, or no known codes.
    """
    free = model.positions - len(known)
    if model.config.order == "annealed":
        _require_one_a_step(model, steps, known)
        tokens = tokens_of(np.arange(free), [0] + [1] * free)
    elif steps > model.positions:
        raise ClipgenError(f"steps is {steps}, but an image has only {model.positions} codes: lower it")
    else:
        tokens = by_locality(model.grid, min(steps or 2 * model.grid, free), known)
    return Layout.stack([tokens]).to(model.null_embedding.device)


def _require_one_a_step(model: Transformer, steps: int, known: tuple[int, ...]) -> None:
    if known:
        raise ClipgenError(
            "this model generates row by row and cannot keep parts of an image: editing needs one that was "
            "trained with transformer.model.order any"
        )
    if steps not in (0, model.positions):
        raise ClipgenError(
            f"this model generates one code a step, so it takes {model.positions} steps, not {steps}: leave "
            "steps out"
        )


def generation_loss(model: Transformer, codes: Tensor, condition: Tensor, steps: int = 0) -> Tensor:
    """-mean log p(code), in the steps in which the model generates.

    Args:
        model: The transformer.
        codes: int64 [n, t].
        condition: Float [n, 1 + neighbours, d].
        steps: How many; 0 for the default.

    Returns:
        A scalar.
    """
    if model.raster:
        return code_cross_entropy(model(codes[:, :-1], condition), codes)
    layout = layout_of(model, steps)
    return code_cross_entropy(model(layout.held(codes), condition, layout=layout), layout.wanted(codes))


@functools.lru_cache(64)
def by_locality(grid: int, steps: int, known: tuple[int, ...] = ()) -> np.ndarray:
    """Tokens that predict a grid in a number of steps, after LPD (arXiv:2507.01957, section 3.3).

    The codes of a step are drawn independently of each other. So each step takes positions that are far from
    each other, whose codes hardly depend on each other, and among those the ones nearest to codes that are
    known, which determine them best.

    Args:
        grid: Side of the grid.
        steps: Number of steps, at most the number of positions to predict.
        known: Positions whose codes are given.

    Returns:
        Positions, targets and steps of the tokens, int64 [3, s], as `Layout` holds them.
    """
    place = np.stack(np.divmod(np.arange(grid**2), grid), axis=1)
    distance = np.linalg.norm(place[:, None] - place[None], axis=2)
    sizes = group_sizes(grid**2 - len(known), steps)
    order = list(known)
    for size in sizes:
        order += _spread(distance, order, size)
    return tokens_of(np.array(order), [len(known), *sizes])


def _spread(distance: np.ndarray, taken: Sequence[int], size: int) -> list[int]:
    """`size` free positions, as far from each other as so many can be, and near to taken ones."""
    middle = distance.max(1)  # smallest for the positions in the middle of the grid, where one begins
    support = np.exp(-distance[:, taken]).sum(1) - middle * 1e-3
    apart = (len(distance) / size) ** 0.5  # of so many positions that are spread evenly
    free = np.ones(len(distance), dtype=bool)
    free[taken] = False
    nearest = np.full(len(distance), apart)
    chosen: list[int] = []
    for _ in range(size):
        score = np.where(free, nearest * len(distance) + support, -np.inf)
        chosen.append(int(score.argmax()))
        free[chosen[-1]] = False
        nearest = np.minimum(nearest, distance[chosen[-1]])
    return chosen
