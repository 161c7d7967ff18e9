"""Decoded images of an images table, by row or id. Knows the table's columns, but not their use."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image

from clipgen_core import logs
from clipgen_core.data.decode import decode_stored
from clipgen_core.data.keys import Lookup, digest_of_keys, joined, numbers
from clipgen_core.data.pixels import fit_square, grid
from clipgen_core.data.prefetch import pool_size
from clipgen_core.data.referenced import find_images, take_images
from clipgen_core.data.selection import selected_keys
from clipgen_core.data.tables import one_of, open_table, quoted, scan_keys
from clipgen_core.errors import ClipgenError
from clipgen_core.schema import VALIDATION_SHARE
from clipgen_core.storage import remedy

if TYPE_CHECKING:
    import lance

R = TypeVar("R")


class ImageTable:
    """Random access to the images of a table.

    Args:
        url: The images table, which the asset raw_images writes.
        where: Which of its images; all if None.
        setting: The name of the setting that holds `where`, for messages.

    Attributes:
        keys: Keys of the images, S16 [n].
        total: How many images the table holds, selected or not.
        train: Row numbers of the training images, int64.
        validation: Row numbers of the held-out images, int64; at least one.

    Raises:
        ClipgenError: The table does not exist, has fewer than three such images, or `where` is no condition.
    """

    def __init__(self, url: str, where: str | None = None, setting: str = "where") -> None:
        self.url = url
        self.table = open_table(url)
        every = joined(scan_keys(self.table))
        chosen = every if where is None else selected_keys(self.table, where, setting)
        rows = np.sort(Lookup(every).find(chosen))
        self.keys, self.total = every[rows], len(every)
        if len(rows) < 3:
            which = f"of the {len(every)} images that {setting} selects from" if where else "images"
            raise ClipgenError(f"{url} holds {len(rows)} {which}, too few to train on: add more")
        held = held_out(self.keys)
        self.train, self.validation = rows[~held], rows[held]
        self._decoders = ThreadPoolExecutor(pool_size())

    @property
    def digest(self) -> str:
        """Digest of the set of images."""
        return digest_of_keys([self.keys])

    def images(self, rows: np.ndarray) -> list[Image.Image]:
        """Decode the images of some rows; returns RGB images at their stored size."""
        return self.map(lambda _, image: image, rows)

    def map(self, call: Callable[[int, Image.Image], R], rows: np.ndarray) -> list[R]:
        """Decode the images of some rows and apply a function to each, in a pool of threads.

        Args:
            call: The function of (position in `rows`, RGB image at its stored size).
            rows: Row numbers, int64 [n].

        Returns:
            The n results, in order.

        Raises:
            ClipgenError: The source no longer holds an image that the table refers to, or does not answer.
        """
        data = take_images(self.table, rows.tolist()).required(self.table)["image"].to_pylist()
        return list(self._decoders.map(lambda i: call(i, decode_stored(data[i])), range(len(data))))


def held_out(keys: np.ndarray) -> np.ndarray:
    """Select the held-out images by their keys, so that every stage selects the same; at least one.

    Args:
        keys: Keys of the images, S16 [n].

    Returns:
        Bool [n], True for held-out images.
    """
    held = numbers(keys)[:, 0] < VALIDATION_SHARE * 2.0**64
    if not held.any():
        held[np.argmin(keys)] = True
    return held


def images_by_id(table: "lance.LanceDataset", ids: Iterable[str]) -> dict[str, Image.Image]:
    """Decode images by their ids.

    Args:
        table: The images table.
        ids: Ids of images; those that the table, or the source that it refers to, no longer holds are left
            out.

    Returns:
        RGB images at their stored size, by id.
    """
    rows = find_images(table, one_of("id", sorted(ids))).rows.to_pylist()
    return {row["id"]: decode_stored(row["image"]) for row in rows}


def image_by_id(table: "lance.LanceDataset", image_id: str) -> Image.Image:
    """Decode one image.

    Args:
        table: The images table.
        image_id: Its id.

    Returns:
        The RGB image at its stored size.

    Raises:
        ClipgenError: The table, or the source that it refers to, does not hold it.
    """
    data = find_images(table, one_of("id", [image_id])).required(table)["image"].to_pylist()
    if not data:
        raise ClipgenError(f"{table.uri} holds no image {image_id}: {remedy('images')}")
    return decode_stored(data[0])


def shown_by_id(table: "lance.LanceDataset", ids: Iterable[str]) -> dict[str, Image.Image]:
    """As `images_by_id`, to show images beside something else, which does not fail without them.

    Args:
        table: The images table.
        ids: Ids of images.

    Returns:
        RGB images by id; none, and a line in the log, if a source that is referred to does not answer.
    """
    try:
        return images_by_id(table, ids)
    except ClipgenError as error:
        logs.line(f"images are not shown: {error}")
        return {}


def preview(table: str, folder: str | None = None, count: int = 24, size: int = 64) -> Image.Image | None:
    """A grid of images spread over the images table.

    Args:
        table: The images table.
        folder: One top-level folder; all if None.
        count: How many at the most.
        size: Of each, in pixels a side.

    Returns:
        The grid; None if there is no image.
    """
    rows = open_table(table)
    if folder is None:
        chosen = np.linspace(0, rows.count_rows() - 1, min(count, rows.count_rows())).astype(int)
        found = take_images(rows, chosen.tolist())
    else:
        ids = rows.to_table(columns=["id"], filter=f"folder = {quoted(folder)}")["id"].to_pylist()
        found = find_images(rows, one_of("id", ids[:: -(-len(ids) // count) or 1]))
    shown = [fit_square(decode_stored(one), size) for one in found.rows["image"].to_pylist()]
    return grid(shown, columns=12) if shown else None
