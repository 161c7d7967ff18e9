"""The captions that an images table holds. Read by the CLIP stage and the evaluation alone.

The method is language-free: nothing here reaches the VQGAN, the token shards or the transformer.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor

import pyarrow as pa
from PIL import Image

from clipgen_core import filesystem
from clipgen_core.data.decode import decode
from clipgen_core.data.images import held_out
from clipgen_core.data.keys import Lookup, joined, keys_of_ids
from clipgen_core.data.prompts import folder_of
from clipgen_core.data.referenced import take_images
from clipgen_core.data.rejected import Rejected
from clipgen_core.data.tables import open_table, scan, scan_keys
from clipgen_core.errors import ClipgenError, first_line

KEPT = 8192  # decoded images, so that small sets are read once
Read = Callable[[Sequence[str]], list[bytes]]


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


class CaptionedImages:
    """The images that captions are of, read many at once; the first KEPT ones stay in memory.

    Args:
        captions: A captions file, or an images table.
        files: Names of files relative to the captions file, or ids of images.
        longest: Longest side of an image; larger ones are reduced.
        pool: Reads files and decodes images.
    """

    def __init__(self, captions: str, files: Sequence[str], longest: int, pool: Executor) -> None:
        self.files, self.longest, self.pool = files, longest, pool
        self.kept = dict[int, Image.Image]()
        self.read = _from_table(captions) if captions.endswith(".lance") else self._from_files(captions)

    def take(self, rows: Sequence[int]) -> list[Image.Image]:
        """Images by their positions in `files`.

        Raises:
            ClipgenError: One cannot be used.
        """
        known = {i: self.kept[i] for i in rows if i in self.kept}
        unread = sorted(set(rows) - known.keys())
        data = self.read([self.files[i] for i in unread]) if unread else []
        known |= zip(unread, self.pool.map(self._decoded, unread, data), strict=True)
        self.kept |= {i: known[i] for i in unread[: max(KEPT - len(self.kept), 0)]}
        return [known[i] for i in rows]

    def _from_files(self, captions: str) -> Read:
        folder = folder_of(captions)

        def read(file: str) -> bytes:
            try:
                return filesystem.read_bytes(filesystem.inside(folder, file))
            except OSError as error:
                raise _unusable(file, error) from error

        return lambda files: list(self.pool.map(read, files))

    def _decoded(self, i: int, data: bytes) -> Image.Image:
        try:
            image = decode(data).image
        except Rejected as error:
            raise _unusable(self.files[i], error) from error
        image.thumbnail((self.longest, self.longest))
        return image


def _from_table(url: str) -> Read:
    table = open_table(url)
    rows = Lookup(joined(scan_keys(table)))

    def read(ids: Sequence[str]) -> list[bytes]:
        found = rows.find(keys_of_ids(pa.array(ids, pa.string())))
        data: list[bytes] = take_images(table, found.tolist()).required(table)["image"].to_pylist()
        return data

    return read


def _unusable(file: str, error: Exception) -> ClipgenError:
    return ClipgenError(
        f"the captions file names {file}, which cannot be used ({first_line(error)}): repair it or take its "
        "rows out"
    )
