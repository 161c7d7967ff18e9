"""The captions that an images table holds. Read by the CLIP stage and the evaluation alone.

The method is language-free: nothing here reaches the VQGAN, the token shards or the transformer.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from clipgen_core import filesystem
from clipgen_core.data.images import held_out
from clipgen_core.data.keys import Lookup, joined, keys_of_ids
from clipgen_core.data.prompts import folder_of
from clipgen_core.data.referenced import take_images
from clipgen_core.data.tables import open_table, scan, scan_keys
from clipgen_core.errors import ClipgenError


def captions_of(url: str) -> Iterator[tuple[str, list[str]]]:
    """The captions of images, which are the lines of the column `caption`.

    Args:
        url: An images table.

    Yields:
        Ids of the images that have one, and their captions.

    Raises:
        ClipgenError: There is no table, or it has no such column.
    """
    table = open_table(url)
    if "caption" not in table.schema.names:
        raise ClipgenError(
            f"{url} has no column caption: read the images again with images.read_again, or name a file of "
            "captions"
        )
    for batch in scan(table, ["id", "caption"], "caption IS NOT NULL"):
        for image_id, caption in zip(batch["id"].to_pylist(), batch["caption"].to_pylist(), strict=True):
            yield image_id, [line for line in caption.splitlines() if line.strip()]


def held_out_captions(url: str) -> Iterator[tuple[str, str]]:
    """The first caption of each held-out image.

    Args:
        url: An images table.

    Yields:
        Ids and captions.
    """
    keys = joined(scan_keys(open_table(url)))
    held = Lookup(keys[held_out(keys)]) if len(keys) else Lookup(keys)
    for image_id, captions in captions_of(url):
        if held.find(keys_of_ids(pa.array([image_id])))[0] >= 0:
            yield image_id, captions[0]


def reader(captions: str) -> Callable[[str], bytes]:
    """What reads the images that captions are of.

    Args:
        captions: A captions file, or an images table.

    Returns:
        A function of a file's name relative to the captions file, or of an image's id.
    """
    if not captions.endswith(".lance"):
        folder = folder_of(captions)
        return lambda file: filesystem.read_bytes(filesystem.inside(folder, file))
    table = open_table(captions)
    rows = Lookup(joined(scan_keys(table)))

    def stored(image_id: str) -> bytes:
        row: np.ndarray = rows.find(keys_of_ids(pa.array([image_id])))
        return bytes(take_images(table, row.tolist()).required(table)["image"][0].as_py())

    return stored
