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
from clipgen_core.models.transformer import SLOTS, Transformer
from clipgen_core.training.losses import code_cross_entropy


class Shape(NamedTuple):
    """What tells the tensors of one call from those of another; calls of the same shape run the same code.

    first: Whether it is the first step of its rows, which has the prefix before its tokens.
    width: Its tokens besides the prefix.
    predicted: How many tokens predict a code; they come first.
    reach: How many slots of the cache are read.
    """

    first: bool
    width: int
    predicted: int
    reach: int


@dataclass(frozen=True, eq=False)
class Plan:
    """The steps in which the codes of an image are sampled.

    widths: The tokens of each step besides the prefix.
    predicted: How many of them, or of the prefix's, predict a code.
    used: The slots of the cache that are in use then.
    table: A row a step, int64 [steps, 3 t + prefix + 1]: the positions whose codes its tokens hold [t], those
        that they predict [t], the slots of the cache that they take [prefix + t], and the slots that are in
        use then [1].
    """

    widths: tuple[int, ...]
    predicted: tuple[int, ...]
    used: tuple[int, ...]
    table: Tensor

    def __len__(self) -> int:
        """The number of steps."""
        return len(self.widths)


def plan_of(model: Transformer, steps: int, known: tuple[int, ...] = ()) -> Plan:
    """The steps in which a model samples an image.

    Args:
        model: Its order decides.
        steps: How many at most; 0 for the default.
        known: Positions whose codes are given.

    Returns:
        The plan, on the CPU.

    Raises:
        ClipgenError: The model cannot take so many steps, or no known codes.
    """
    tokens = tokens_to_sample(model, steps, known)
    of_step, predicts = tokens[2], tokens[1] != NONE
    widths, predicted = np.bincount(of_step), np.bincount(of_step[predicts])
    used = model.offset + np.cumsum(widths)
    if model.raster:
        widths[0] -= 1  # its token is the prefix's last one
    table = torch.from_numpy(_table(model, tokens, used))
    return Plan(tuple(widths.tolist()), tuple(predicted.tolist()), tuple(used.tolist()), table)


def shape_of(model: Transformer, rows: Sequence[tuple[Plan, int]], *, fixed: bool = False) -> Shape:
    """The shape of a call in which each row takes a step of its own.

    Args:
        model: The model.
        rows: The plan and the step of each row; either all of them take their first step, or none does.
        fixed: Whether there should be few shapes, so that each can be recorded and replayed: the whole cache
            is read, and tokens that hold and predict nothing fill up to the next width of `padded`.

    Returns:
        The shape. Every row attends to its own slots under a mask and reads a multiple of 16 of them, so that
        it computes the same numbers whichever rows are beside it.
    """
    width, predicted, used = (
        max(getattr(plan, what)[step] for plan, step in rows) for what in ("widths", "predicted", "used")
    )
    reach = -(-used // SLOTS) * SLOTS
    if fixed:
        width, predicted = (min(padded(count), model.positions) for count in (width, predicted))
        reach = model.slots
    return Shape(rows[0][1] == 0, width, predicted, reach)


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
    """The next of a few sizes: 0, 1, multiples of 4, and from 32 on a quarter to an eighth apart."""
    if count <= 1:
        return count
    apart = max(4, (1 << count.bit_length()) // 8)
    return -(-count // apart) * apart


def step_at(model: Transformer, rows: Tensor, shape: Shape) -> Step:
    """The tokens of a step; nothing of it is computed on the CPU.

    Args:
        model: Whose plans they are.
        rows: Of the plans' tables, one a row, on the model's device, int64 [n, 3 t + prefix + 1].
        shape: The step's.

    Returns:
        The step. All steps of a shape have tensors of the same shapes.
    """
    t, prefix, width = model.positions, model.prefix, shape.width
    positions, targets, slots, used = rows.split([t, t, prefix + t, 1], dim=1)
    order = torch.arange(shape.reach, device=rows.device)
    visible = (order < used).unsqueeze(1)
    if shape.first:  # the prefix sees itself alone
        seen = order[:prefix, None] >= order if model.raster else (order < prefix).expand(prefix, -1)
        visible = torch.cat([seen.expand(len(rows), -1, -1), visible.expand(-1, width, -1)], dim=1)
    return Step(
        positions=positions[:, :width],
        targets=targets[:, : max(width, shape.predicted)],
        slots=slots[:, : prefix + width if shape.first else width],
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
            f"steps is {steps}, but this model generates one code a step, {model.positions} in all: "
            "leave steps out"
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
