"""Sets of picture ids in 16 bytes each, so that a million of them are 16 MB and not 150.

A key is the first half of an id (a SHA-256, so halves do not collide either). Trailing zero bytes do
not show in numpy's S16, which changes no comparison: all keys are equally long.
"""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

KEY = np.dtype("S16")


def keys_of_ids(ids: pa.Array) -> np.ndarray:
    """Hex ids as keys [n]."""
    raw = bytes.fromhex("".join(ids.to_pylist()))
    return np.frombuffer(raw, np.dtype([("key", KEY), ("rest", KEY)]))["key"].copy()


def keys_of_texts(texts: Iterable[str]) -> np.ndarray:
    """Any texts as keys [n]."""
    hashed = [hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=16) for text in texts]
    return np.array([one.digest() for one in hashed], KEY)


def numbers(keys: np.ndarray) -> np.ndarray:
    """Keys [n] as big-endian numbers, uint64 [n, 2]."""
    return np.frombuffer(keys.tobytes(), ">u8").reshape(-1, 2).astype(np.uint64)


class Lookup:
    """Where each of many keys stands in an array of keys that is sorted once."""

    def __init__(self, keys: np.ndarray) -> None:
        self.order = np.argsort(keys, kind="stable")
        self.sorted = keys[self.order]

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Positions int64 [n] in the array given at first, -1 where a key is not in it."""
        if not len(self.sorted):
            return np.full(len(keys), -1)
        at = np.searchsorted(self.sorted, keys).clip(max=len(self.sorted) - 1)
        return np.where(self.sorted[at] == keys, self.order[at], -1)


class SetDigest:
    """A digest of a set of keys, whatever their order: the version of a data set.

    The sum of the keys, modulo 2**64 in each half, and their count: it needs no more memory than a part.
    """

    def __init__(self) -> None:
        self.total, self.count = np.zeros(2, np.uint64), 0

    def add(self, keys: np.ndarray) -> None:
        self.total += numbers(keys).sum(axis=0, dtype=np.uint64)
        self.count += len(keys)

    @property
    def hex(self) -> str:
        """16 hex digits."""
        return hashlib.sha256(self.total.tobytes() + str(self.count).encode()).hexdigest()[:16]


def digest_of_keys(parts: Iterable[np.ndarray]) -> str:
    """The SetDigest of keys that come in parts."""
    digest = SetDigest()
    for part in parts:
        digest.add(part)
    return digest.hex


def joined(parts: Iterator[np.ndarray]) -> np.ndarray:
    """All parts in one array, which may be empty."""
    return np.concatenate([np.zeros(0, KEY), *parts])
