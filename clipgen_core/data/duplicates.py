"""Reads the table of near-duplicates: the pairs, and the redundant images among them."""

from collections.abc import Iterator

import numpy as np

from clipgen_core.data.keys import keys_of_ids
from clipgen_core.data.tables import find_table, scan
from clipgen_core.errors import ClipgenError


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


def redundant_keys(url: str, threshold: float, among: np.ndarray | None = None) -> set[bytes]:
    """The images to leave out: of each group of near-duplicates all but the one with the smallest id.

    Args:
        url: The table that the asset near_duplicates writes.
        threshold: The smallest cosine of two images of a group.
        among: Keys of the images that count, S16 [n]; all if None.

    Returns:
        The keys of the images to leave out.

    Raises:
        ClipgenError: The table does not exist.
    """
    parent: dict[bytes, bytes] = {}

    def root(key: bytes) -> bytes:
        while (above := parent.get(key, key)) != key:
            parent[key] = parent.get(above, above)
            key = above
        return key

    for one, other in pairs_of(url, threshold):
        for a, b in zip(one.tolist(), other.tolist(), strict=True):
            low, high = sorted((root(a), root(b)))
            parent[high] = low
    members = parent.keys() | {root(key) for key in parent}
    if among is not None:
        members &= set(among.tolist())
    smallest = {root(key): key for key in sorted(members, reverse=True)}
    return {key for key in members if smallest[root(key)] != key}
