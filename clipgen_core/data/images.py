"""Decoded pictures of an images table, by row. Knows the table's columns, not what they are for."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from clipgen_core.data.pictures import decode_stored
from clipgen_core.data.tables import open_table
from clipgen_core.errors import ClipgenError
from clipgen_core.schema import digest_of_ids, is_validation


class ImageTable:
    """Random access to pictures.

    train, validation: row numbers, split by digest; validation holds one picture at the least.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.table = open_table(url)
        self.ids: list[str] = self.table.to_table(columns=["id"])["id"].to_pylist()
        if len(self.ids) < 3:
            raise ClipgenError(f"{url} holds {len(self.ids)} pictures, too few to train: add more")
        held = np.array([is_validation(image_id) for image_id in self.ids], dtype=bool)
        if not held.any():
            held[self.ids.index(min(self.ids))] = True
        self.train, self.validation = np.flatnonzero(~held), np.flatnonzero(held)
        self._decoders = ThreadPoolExecutor(4)

    @property
    def digest(self) -> str:
        return digest_of_ids(self.ids)

    def pictures(self, rows: np.ndarray) -> list[Image.Image]:
        """RGB pictures at their stored size."""
        data = self.table.take(rows.tolist(), columns=["image"])["image"].to_pylist()
        return list(self._decoders.map(decode_stored, data))
