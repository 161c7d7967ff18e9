"""The steps in which a model generates: which positions each predicts, and by which tensors."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clipgen_core.errors import ClipgenError
from clipgen_core.models.layout import NONE, Layout, Step, group_sizes, tokens_of
from clipgen_core.models.transformer import Transformer
from clipgen_core.training.losses import code_cross_entropy


class Shape(NamedTuple):
    """What tells the tensors of one step from those of another; steps of the same shape run the same code.

    first: Whether it is the first step, which has the prefix before its tokens.
    width: Its tokens besides the prefix.
    predicted: How many tokens predict a code; they come first.
    reach: How many slots of the cache are read.
    masked: Whether some of those must be hidden.
    """

    first: bool
    width: int
    predicted: int
    reach: int
    masked: bool


@dataclass(frozen=True)
class Plan:
    """The steps in which the codes of an image are sampled.

    shapes: Of each step.
    table: A row a step, int64 [steps, 3 t + prefix + 1]: the positions whose codes its tokens hold [t], those
        that they predict [t], the slots of the cache that they take [prefix + t], and the slots that are in
        use then [1].
    """

    shapes: tuple[Shape, ...]
    table: Tensor


def plan_of(model: Transformer, steps: int, known: Tensor | None = None, *, fixed: bool = False) -> Plan:
    """The steps in which a model samples an image.

    Args:
        model: Its order decides.
        steps: How many at most; 0 for the default.
        known: Given codes, int64 [n, t], -1 where there is none.
        fixed: Whether steps have few shapes, so that each can be recorded and replayed: every step reads the
            whole cache under a mask, and further tokens, which hold and predict nothing, fill a step up to
            the next width of `padded`. Otherwise a step computes nothing that is not needed.

    Returns:
        The plan, on the CPU.

    Raises:
        ClipgenError: The model cannot take so many steps, or no known codes.
    """
    given = () if known is None else tuple((known[0] != NONE).nonzero().flatten().tolist())
    tokens = tokens_to_sample(model, steps, given)
    of_step, predicts = tokens[2], tokens[1] != NONE
    counts = np.stack([np.bincount(of_step), np.bincount(of_step[predicts])], axis=1)
    used = model.offset + np.cumsum(counts[:, 0])
    shapes = list[Shape]()
    for (width, predicted), reach in zip(counts.tolist(), used.tolist(), strict=True):
        first = not shapes
        if fixed:
            width, predicted = (min(padded(count), model.positions) for count in (width, predicted))
            reach = model.slots
        width = width - 1 if first and model.raster else width
        masked = fixed or (first and model.prefix + width > 1)
        shapes.append(Shape(first, width, predicted, reach, masked))
    return Plan(tuple(shapes), torch.from_numpy(_table(model, tokens, used)))


def _table(model: Transformer, tokens: np.ndarray, used: np.ndarray) -> np.ndarray:
    """As `Plan` holds it, of tokens [3, s] and the slots in use at each step [steps]."""
    t, prefix = model.positions, model.prefix
    positions, targets, of_step = tokens
    token = np.arange(len(of_step))
    within = token - np.searchsorted(of_step, of_step)
    table = np.full((len(used), 3 * t + prefix + 1), NONE)
    table[of_step, within], table[of_step, t + within] = positions, targets
    table[:, 2 * t : -1] = model.slots - 1  # which no token attends to
    table[0, 2 * t : 2 * t + prefix] = np.arange(prefix)
    table[of_step, 2 * t + within + np.where(of_step == 0, model.offset, 0)] = model.offset + token
    table[:, -1] = used
    return table


def padded(count: int) -> int:
    """The next of a few sizes: 1, multiples of 4, and from 32 on a quarter to an eighth apart."""
    if count == 1:
        return 1
    apart = max(4, (1 << count.bit_length()) // 8)
    return -(-count // apart) * apart


def step_at(model: Transformer, row: Tensor, shape: Shape) -> Step:
    """The tokens of a step; nothing of it is computed on the CPU.

    Args:
        model: Whose plan it is.
        row: Of the plan's table, on the model's device, int64 [3 t + prefix + 1].
        shape: The step's.

    Returns:
        The step. All steps of a shape have tensors of the same shapes.
    """
    t, prefix, width = model.positions, model.prefix, shape.width
    positions, targets, slots, used = row.split([t, t, prefix + t, 1])
    visible = None
    if shape.masked:
        order = torch.arange(shape.reach, device=row.device)
        visible = (order < used).unsqueeze(0)
        if shape.first:  # the prefix sees itself alone
            seen = order[:prefix, None] >= order if model.raster else (order < prefix).expand(prefix, -1)
            visible = torch.cat([seen, visible.expand(width, -1)])
    return Step(
        positions=positions[None, :width],
        targets=targets[None, : max(width, shape.predicted)],
        slots=slots[: prefix + width if shape.first else width],
        visible=visible,
        reach=shape.reach,
        predicted=shape.predicted,
        first=shape.first,
    )


def tokens_to_sample(model: Transformer, steps: int, known: tuple[int, ...] = ()) -> np.ndarray:
    """The tokens by which a model samples an image.

    Args:
        model: Its order decides.
        steps: How many at most; 0 for the default, twice the grid's side.
        known: Positions whose codes are given.

    Returns:
        Positions, targets and steps of the tokens, int64 [3, s], as `Layout` holds them. In raster order the
        first, which holds no code, is the last one of the prefix.

    Raises:
        ClipgenError: The model cannot take so many steps, or no known codes.
    """
    free = model.positions - len(known)
    if model.config.order != "any":
        _require_one_a_step(model, steps, known)
        return tokens_of(np.arange(free), [0] + [1] * free)
    if steps > model.positions:
        raise ClipgenError(f"steps is {steps}, but an image has only {model.positions} codes: lower it")
    return by_locality(model.grid, min(steps or 2 * model.grid, free), known)


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
    tokens = tokens_to_sample(model, steps)
    layout = Layout.stack([tokens]).to(codes.device)
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
