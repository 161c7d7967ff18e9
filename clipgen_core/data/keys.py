"""Sets of image ids in 16 bytes each, so that a million ids take 16 MB instead of 150.

A key is the first half of an id, which is a SHA-256, so that halves do not collide either. NumPy hides
trailing zero bytes of S16 values; this changes no comparison, since all keys are equally long.
"""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

KEY = np.dtype("S16")


def keys_of_ids(ids: pa.Array) -> np.ndarray:
    """The keys of hexadecimal ids, S16 [n]."""
    raw = bytes.fromhex("".join(ids.to_pylist()))
    return np.frombuffer(raw, np.dtype([("key", KEY), ("rest", KEY)]))["key"].copy()


def keys_of_texts(texts: Iterable[str]) -> np.ndarray:
    """The keys of any texts, S16 [n]."""
    hashed = [hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=16) for text in texts]
    return np.array([one.digest() for one in hashed], KEY)


def numbers(keys: np.ndarray) -> np.ndarray:
    """Keys, S16 [n], as big-endian numbers, uint64 [n, 2]."""
    return np.frombuffer(keys.tobytes(), ">u8").reshape(-1, 2).astype(np.uint64)


class Lookup:
    """Finds the positions of keys in an array of keys, S16 [m], which is sorted once."""

    def __init__(self, keys: np.ndarray) -> None:
        self.order = np.argsort(keys, kind="stable")
        self.sorted = keys[self.order]

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The positions of keys, S16 [n], in the array: int64 [n], -1 where a key is not in it."""
        if not len(self.sorted):
            return np.full(len(keys), -1)
        index = np.searchsorted(self.sorted, keys).clip(max=len(self.sorted) - 1)
        return np.where(self.sorted[index] == keys, self.order[index], -1)


class SetDigest:
    """A digest of a set of keys that does not depend on their order: the version of a data set.

    It is computed from the sum of the keys, modulo 2**64 in each half, and from their count, so that the keys
    may come in parts and need not be kept.
    """

    def __init__(self) -> None:
        self.total, self.count = np.zeros(2, np.uint64), 0

    def add(self, keys: np.ndarray) -> None:
        """Add keys, S16 [n]."""
        self.total += numbers(keys).sum(axis=0, dtype=np.uint64)
        self.count += len(keys)

    @property
    def hex(self) -> str:
        """The digest in 16 hexadecimal digits."""
        return hashlib.sha256(self.total.tobytes() + str(self.count).encode()).hexdigest()[:16]


def digest_of_keys(parts: Iterable[np.ndarray]) -> str:
    """The digest of a set of keys that come in parts, S16 [n] each."""
    digest = SetDigest()
    for part in parts:
        digest.add(part)
    return digest.hex


def joined(parts: Iterator[np.ndarray]) -> np.ndarray:
    """Concatenate parts of keys, S16 [n] each; the result may be empty."""
    return np.concatenate([np.zeros(0, KEY), *parts])
