"""Which codes the tokens of a sequence hold and which they predict, where codes may come in any order.

A grid is predicted group by group: the codes of a group at once, from the codes of all groups before it. The
tokens of step g hold the codes of group g and predict those of group g + 1,

    p(group g + 1 | groups 0..g) = product over its positions q of p(code at q | groups 0..g, q),

so a token is told the position that it predicts besides the position of the code that it holds (target-aware
positions: RAR, arXiv:2411.00776; sigma-GPT, arXiv:2404.09562). The tokens of a step attend to each other and
to all earlier ones. So they know which positions are predicted beside their own, as the queries of LPD
(arXiv:2507.01957) do, but a sequence has no more tokens than the grid has codes, where LPD and RandAR
(arXiv:2412.01827) have twice as many.

Group 0 is given: it is empty when a whole image is generated, and holds the known codes when one is edited.
Where a group is smaller than the next, some tokens hold no code; where it is larger, some predict none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

NONE = -1
SURE = 40.0  # a logit


@dataclass(frozen=True)
class Layout:
    """The tokens of some sequences; of one row, where all rows of a batch have the same.

    positions: Where the code is that a token holds, int64 [n, s]; -1: it holds none.
    targets: The position whose code it predicts, int64 [n, s]; -1: none.
    steps: The step that it belongs to, int64 [n, s].
    """

    positions: Tensor
    targets: Tensor
    steps: Tensor

    @classmethod
    def stack(cls, rows: Sequence[np.ndarray]) -> "Layout":
        """A batch of the rows that `tokens_of` gives, each int64 [3, s]."""
        return cls(*torch.from_numpy(np.stack(rows, axis=1)).unbind())

    def to(self, device: torch.device | str) -> "Layout":
        """The same on a device."""
        return Layout(self.positions.to(device), self.targets.to(device), self.steps.to(device))

    def held(self, codes: Tensor) -> Tensor:
        """The codes that tokens hold.

        Args:
            codes: The codes of grids, int64 [n, t].

        Returns:
            int64 [n, s]; -1 for a token that holds none.
        """
        return _at(codes, self.positions)

    def wanted(self, codes: Tensor) -> Tensor:
        """The codes that tokens are to predict.

        Args:
            codes: The codes of grids, int64 [n, t].

        Returns:
            int64 [n, s]; -1 for a token that predicts none.
        """
        return _at(codes, self.targets)

    def by_position(self, logits: Tensor, codes: Tensor) -> Tensor:
        """Logits in raster order.

        Args:
            logits: Of the tokens, float [n, s, k].
            codes: The codes of grids, int64 [n, t].

        Returns:
            Float [n, t, k]; a code that is given, and not predicted, has practically all the probability.
        """
        n, t, k = *codes.shape, logits.shape[-1]
        sure = F.one_hot(codes, k).to(logits.dtype) * SURE
        sure = torch.cat([sure, sure.new_zeros(n, 1, k)], dim=1)  # the last takes what predicts none
        where = torch.where(self.targets == NONE, t, self.targets).expand(n, -1).unsqueeze(-1)
        return sure.scatter(1, where.expand(-1, -1, k), logits)[:, :t]


@dataclass(frozen=True)
class Step:
    """The tokens of one call while images are sampled; every row may be at a step of its own.

    positions: Where the code is that a token holds, int64 [n, s]; -1: it holds none. In raster order, the
        first step has no tokens but the prefix, whose last one predicts the first code.
    targets: The position whose code it predicts, int64 [n, s]; -1: none.
    slots: Where in the cache the tokens go, those of the prefix ahead at the first step, int64 [n, s].
    visible: The slots to which they attend, bool [n, 1 or s, reach].
    reach: How many slots of the cache are read.
    predicted: How many tokens predict a code; they come first.
    first: Whether this is the first step, of all rows.
    """

    positions: Tensor
    targets: Tensor
    slots: Tensor
    visible: Tensor
    reach: int
    predicted: int
    first: bool

    def held(self, codes: Tensor) -> Tensor:
        """As `Layout.held`."""
        return _at(codes, self.positions)


def _at(codes: Tensor, positions: Tensor) -> Tensor:
    positions = positions.expand(len(codes), -1)
    return codes.gather(1, positions.clamp(min=0)).masked_fill(positions == NONE, NONE)


def tokens_of(order: np.ndarray, sizes: Sequence[int] | np.ndarray, length: int | None = None) -> np.ndarray:
    """The tokens of one sequence.

    Args:
        order: All positions, in the order in which they are given and predicted, int64 [t].
        sizes: The sizes of the groups; the first one is given and may be 0. They add up to t.
        length: Tokens that hold and predict nothing, and that no other sees, fill up to this length.

    Returns:
        Positions, targets and steps, int64 [3, s].
    """
    sizes = np.asarray(sizes)
    starts = np.cumsum(sizes) - sizes
    widths = np.maximum(sizes[:-1], sizes[1:])
    steps = np.repeat(np.arange(len(widths)), widths)
    within = np.arange(len(steps)) - np.repeat(np.cumsum(widths) - widths, widths)
    tokens = np.full((3, max(len(steps), length or 0)), NONE)
    tokens[2] = len(widths)
    tokens[2, : len(steps)] = steps
    for row, group in ((0, steps), (1, steps + 1)):
        present = within < sizes[group]
        tokens[row, : len(steps)][present] = order[(starts[group] + within)[present]]
    return tokens


def group_sizes(count: int, steps: int) -> np.ndarray:
    """Sizes of groups that grow along a cosine: few codes at once while little is known.

    Args:
        count: Codes to predict.
        steps: Number of groups, at most `count`.

    Returns:
        int64 [steps], ascending, adding up to `count`.
    """
    done = (count - steps) * (1 - np.cos(np.pi / 2 * np.arange(steps + 1) / steps))
    return 1 + np.sort(np.diff(np.round(done).astype(np.int64)))
