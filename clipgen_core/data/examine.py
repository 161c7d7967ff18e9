"""Look at an image of a source: a row for the images table, or one for the rejects."""

import hashlib
from dataclasses import dataclass
from typing import Any

from clipgen_core.data.decode import Decoded, decode, encoded
from clipgen_core.data.names import text_of
from clipgen_core.data.rejected import Rejected
from clipgen_core.data.sources import File, Item
from clipgen_core.errors import ClipgenError
from clipgen_core.settings.images import Config


@dataclass(frozen=True)
class Outcome:
    """A row for the images table or one for the rejects; neither at the end of a file, or if it is no image.

    lost: how many images a reject stands for, 0 if that is not known.
    """

    file: File
    row: dict[str, Any] | None = None
    reject: dict[str, Any] | None = None
    lost: int = 1
    ends: bool = False


@dataclass(frozen=True)
class Task:
    """A file to read, an image, or the end of a file."""

    file: File
    item: Item | None = None
    ends: bool = False
    was_read: bool = False

    @property
    def size(self) -> int:
        """Bytes of its image."""
        return len(self.item.data) if self.item else 0 if self.ends or self.was_read else self.file.size


def examine(config: Config, file: File, item: Item) -> Outcome:
    """Decode an item to see whether it can be used.

    Args:
        config: Which images are accepted.
        file: The file it is in.
        item: Its bytes, or why they could not be read.

    Returns:
        A row for the images table, or one for the rejects.
    """
    bad = {"uri": item.uri, "file": file.uri}
    if item.problem is not None:
        return Outcome(file, reject={**bad, "reason": item.reason, "detail": item.problem}, lost=item.lost)
    try:
        decoded = decode(item.data, config, config.longest_side)
    except Rejected as rejected:
        return Outcome(file, reject={**bad, "reason": rejected.reason, "detail": rejected.detail})
    except MemoryError as error:
        raise ClipgenError(
            f"there is not enough memory to decode {item.uri}: lower images.readers"
        ) from error
    reference = reference_to(config, file, item, decoded)
    row = {
        "id": hashlib.sha256(item.data).hexdigest(),
        "uri": item.uri,
        "folder": file.folder,
        "format": decoded.format,
        "width": decoded.image.width,
        "height": decoded.image.height,
        "image": b"" if reference else item.data if decoded.plain else encoded(decoded),
        "reference": reference,
        **item.columns,
    }
    return Outcome(file, row)


def reference_to(config: Config, file: File, item: Item, decoded: Decoded) -> dict[str, Any] | None:
    """Where the bytes of an image lie, if the images table refers to them.

    Args:
        config: Whether it does.
        file: The file that the image is in.
        item: Its bytes.
        decoded: The image, which is stored if settings or optional packages are needed to decode it.

    Returns:
        A value of the column of references; None if the image is stored.

    Raises:
        ClipgenError: The bytes lie nowhere as they are.
    """
    if config.store == "images" or not decoded.plain or text_of(file.path) != file.path:
        return None
    if item.offset is None:
        raise ClipgenError(
            f"{item.uri} cannot be referenced, since its file is compressed or a Parquet file: unpack it, or "
            "set images.store to images"
        )
    return {"file": file.uri, "offset": item.offset, "length": len(item.data), "stamp": file.stamp}
