"""In which order rows are visited: a pure function of (seed, position), so that resuming needs no state."""

import functools

import numpy as np


class ShuffledOrder:
    """Endless passes over `rows` rows, each in its own random order."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rows, self.seed = rows, seed
        self._pass = functools.lru_cache(2)(self._shuffle)

    def _shuffle(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.rows)

    def batch(self, step: int, size: int) -> np.ndarray:
        """The row numbers of batch `step`; a batch may reach into the next pass."""
        positions = np.arange(step * size, (step + 1) * size)
        epochs, offsets = positions // self.rows, positions % self.rows
        return np.concatenate([self._pass(int(e))[offsets[epochs == e]] for e in np.unique(epochs)])
