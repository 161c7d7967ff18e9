"""Reads the table of near-duplicates: the pairs, and the redundant images among them."""

from collections.abc import Iterator

import numpy as np
import torch

from clipgen_core.data.embeddings import EmbeddingTable
from clipgen_core.data.keys import KEY, Lookup, keys_of_ids
from clipgen_core.data.tables import find_table, scan
from clipgen_core.device import default_device
from clipgen_core.errors import ClipgenError

AT_ONCE = 4096  # images that are compared with all others


def pairs_of(url: str, threshold: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Read the pairs of near-duplicates.

    Args:
        url: The table that the asset near_duplicates writes.
        threshold: The smallest cosine of a pair.

    Yields:
        The keys of both images of some pairs, S16 [n] each.

    Raises:
        ClipgenError: The table does not exist.
    """
    table = find_table(url)
    if table is None:
        raise ClipgenError(
            f"there is no table of near-duplicates at {url}: materialise near_duplicates first"
        )
    for batch in scan(table, ["id", "nearest"], f"cosine >= {threshold}"):
        yield keys_of_ids(batch["id"]), keys_of_ids(batch["nearest"])


def redundant_keys(
    url: str, threshold: float, embeddings: EmbeddingTable, among: np.ndarray | None = None
) -> set[bytes]:
    """The images to leave out: of each group of near-duplicates all but the one with the smallest id.

    The table knows one pair of each image, which may leave a group in parts. So the images that would be kept
    of two parts are compared with each other (g * g * d operations with g parts).

    Args:
        url: The table that the asset near_duplicates writes.
        threshold: The smallest cosine of two images of a group.
        embeddings: The table that the pairs were looked up in.
        among: Keys of the images that count, S16 [n]; all if None.

    Returns:
        The keys of the images to leave out. No two of the others have such a cosine.

    Raises:
        ClipgenError: The table does not exist.
    """
    groups = _Groups()
    for one, other in pairs_of(url, threshold):
        groups.join(one, other)
    members = set(groups.parent) | set(groups.parent.values())
    if among is not None:
        members &= set(among.tolist())
    kept = np.array(sorted(groups.smallest(members).values()), KEY)
    for one, other in _alike(kept, embeddings, threshold):
        groups.join(one, other)
    smallest = groups.smallest(members)
    return {key for key in members if smallest[groups.root(key)] != key}


class _Groups:
    """Sets of keys that grow together."""

    def __init__(self) -> None:
        self.parent: dict[bytes, bytes] = {}

    def root(self, key: bytes) -> bytes:
        """The key that stands for a key's group."""
        while (above := self.parent.get(key, key)) != key:
            self.parent[key] = self.parent.get(above, above)
            key = above
        return key

    def join(self, one: np.ndarray, other: np.ndarray) -> None:
        """Let both keys of each pair, S16 [n] each, be in one group."""
        for a, b in zip(one.tolist(), other.tolist(), strict=True):
            low, high = sorted((self.root(a), self.root(b)))
            self.parent[high] = low

    def smallest(self, members: set[bytes]) -> dict[bytes, bytes]:
        """The smallest member of each group, by the key that stands for the group."""
        return {self.root(key): key for key in sorted(members, reverse=True)}


def _alike(
    keys: np.ndarray, embeddings: EmbeddingTable, threshold: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pairs of images with at least a cosine, by exact search.

    Args:
        keys: Of the images, S16 [n].
        embeddings: Their table.
        threshold: The cosine.

    Yields:
        The keys of both images of some pairs, S16 [m] each.
    """
    if len(keys) < 2:
        return
    rows = Lookup(embeddings.keys()).find(keys)
    keys, rows = keys[rows >= 0], rows[rows >= 0]
    flat = embeddings.vectors(rows).combine_chunks().flatten().to_numpy()
    vectors = torch.from_numpy(flat.reshape(len(rows), -1).copy()).to(default_device())
    for start in range(0, len(vectors), AT_ONCE):
        cosine = vectors[start : start + AT_ONCE] @ vectors[start:].T
        one, other = (cosine.triu(1) >= threshold).nonzero().cpu().numpy().T + start
        yield keys[one], keys[other]
