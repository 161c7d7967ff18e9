"""Look at an image of a source: a row for the images table, or one for the rejects."""

import hashlib
from dataclasses import dataclass
from typing import Any

from clipgen_core.data.decode import decode, encoded
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
    row = {
        "id": hashlib.sha256(item.data).hexdigest(),
        "uri": item.uri,
        "folder": file.folder,
        "format": decoded.format,
        "width": decoded.image.width,
        "height": decoded.image.height,
        "image": item.data if decoded.plain else encoded(decoded),
        **item.columns,
    }
    return Outcome(file, row)
