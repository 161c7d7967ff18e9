"""In which order rows are visited: a pure function of (seed, position), so that resuming needs no state."""

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
        return rows[self.index :: self.of]  # type: ignore[index, no-any-return]


WHOLE = Share()


class ShuffledOrder:
    """Endless passes over the rows of several parts, each pass in its own random order.

    A pass shuffles the parts, takes `window` of them at a time and shuffles their rows: so few parts
    are in use at once, and rows still mix. With no more parts than that, it is a plain shuffle.

    Args:
        parts: rows of each part; row numbers count on from part to part.
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
        """The row numbers of batch `step`; a batch may reach into the next window or pass."""
        found, position, left = [], step * size, size
        while left:
            epoch, offset = divmod(position, self.rows)
            begins = self._pass(epoch)[1]
            window = int(np.searchsorted(begins, offset, side="right")) - 1
            taken = self._window(epoch, window)[offset - begins[window] :][:left]
            found.append(taken)
            position, left = position + len(taken), left - len(taken)
        return np.concatenate(found)
