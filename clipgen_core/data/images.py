"""Decoded pictures of an images table, by row or id. Knows the table's columns, not what they are for."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import lance
import numpy as np
from PIL import Image

from clipgen_core.data.keys import digest_of_keys, joined, numbers
from clipgen_core.data.pixels import decode_stored
from clipgen_core.data.tables import one_of, open_table, scan_keys
from clipgen_core.errors import ClipgenError
from clipgen_core.schema import VALIDATION_SHARE


class ImageTable:
    """Random access to pictures.

    train, validation: row numbers, split by digest; validation holds one picture at the least.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.table = open_table(url)
        self.keys = joined(scan_keys(self.table))
        if len(self.keys) < 3:
            raise ClipgenError(f"{url} holds {len(self.keys)} pictures, too few to train: add more")
        held = held_out(self.keys)
        self.train, self.validation = np.flatnonzero(~held), np.flatnonzero(held)
        self._decoders = ThreadPoolExecutor(4)

    @property
    def digest(self) -> str:
        return digest_of_keys([self.keys])

    def pictures(self, rows: np.ndarray) -> list[Image.Image]:
        """RGB pictures at their stored size."""
        data = self.table.take(rows.tolist(), columns=["image"])["image"].to_pylist()
        return list(self._decoders.map(decode_stored, data))


def held_out(keys: np.ndarray) -> np.ndarray:
    """Which pictures are kept from training: by their own digests, so every stage agrees; one at least."""
    held = numbers(keys)[:, 0] < VALIDATION_SHARE * 2.0**64
    if not held.any():
        held[np.argmin(keys)] = True
    return held


def pictures_by_id(table: lance.LanceDataset, ids: Iterable[str]) -> dict[str, Image.Image]:
    """Those of the pictures that the images table still has."""
    rows = table.to_table(columns=["id", "image"], filter=one_of("id", sorted(ids))).to_pylist()
    return {row["id"]: decode_stored(row["image"]) for row in rows}
