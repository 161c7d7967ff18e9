"""The order of training rows: a pure function of (seed, position), so that resuming needs no state."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Rows = TypeVar("Rows")


@dataclass(frozen=True)
class Share:
    """The part of a step's batch that one process computes at once: every `of`-th row from `index` on."""

    index: int = 0
    of: int = 1

    def take(self, rows: Rows) -> Rows:
        """The rows of this share, of any sequence or array that can be sliced."""
        return rows[self.index :: self.of]  # type: ignore[index, no-any-return]


WHOLE = Share()


class ShuffledOrder:
    """Endless passes over the rows of several parts, each pass in its own random order.

    A pass shuffles the parts, takes `window` parts at a time and shuffles their rows, so that rows of several
    parts are mixed while few parts are in memory. With at most `window` parts this is a plain shuffle.

    Args:
        parts: Number of rows of each part; row numbers continue from part to part.
        seed: Seed of all passes.
        window: Number of parts that are mixed.
    """

    def __init__(self, parts: Sequence[int], seed: int, window: int = 4) -> None:
        self.parts, self.seed, self.window = np.asarray(parts), seed, window
        self.rows = int(self.parts.sum())
        self.first = np.cumsum([0, *parts[:-1]])
        self._pass = functools.lru_cache(2)(self._windows)
        self._window = functools.lru_cache(4)(self._shuffle)

    def _windows(self, epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
        """The parts of each window of a pass, and where each window begins in it."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.parts))
        windows = [order[i : i + self.window] for i in range(0, len(order), self.window)]
        return windows, np.cumsum([0, *(self.parts[window].sum() for window in windows)])

    def _shuffle(self, epoch: int, window: int) -> np.ndarray:
        parts = self._pass(epoch)[0][window]
        rows = np.concatenate([self.first[p] + np.arange(self.parts[p]) for p in parts])
        return np.random.default_rng([self.seed, epoch, window]).permutation(rows)

    def batch(self, step: int, size: int) -> np.ndarray:
        """The rows of a batch, which may extend into the next window or pass.

        Args:
            step: Number of the batch, from 0.
            size: Rows of a batch.

        Returns:
            Row numbers, int64 [size].
        """
        chosen, position, left = [], step * size, size
        while left:
            epoch, offset = divmod(position, self.rows)
            begins = self._pass(epoch)[1]
            window = int(np.searchsorted(begins, offset, side="right")) - 1
            taken = self._window(epoch, window)[offset - begins[window] :][:left]
            chosen.append(taken)
            position, left = position + len(taken), left - len(taken)
        return np.concatenate(chosen)
