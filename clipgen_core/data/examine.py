"""Look at an image of a source: a row for the images table, or one for the rejects."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from clipgen_core.data.archives import ZIP, hides_bytes
from clipgen_core.data.decode import Decoded, decode, encoded
from clipgen_core.data.names import text_of
from clipgen_core.data.rejected import Rejected
from clipgen_core.data.sources import File, Item, Source
from clipgen_core.errors import ClipgenError
from clipgen_core.settings.images import Config

NAMED = 3  # files that a message names


@dataclass(frozen=True)
class Outcome:
    """A row for the images table or one for the rejects; neither at the end of a file, or if it is no image.

    lost: how many images a reject stands for, 0 if that is not known; unread: a file of metadata that cannot
    be read, and why.
    """

    file: File
    row: dict[str, Any] | None = None
    reject: dict[str, Any] | None = None
    lost: int = 1
    ends: bool = False
    unread: str = ""


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


class NotReferable(ClipgenError):
    """An image whose bytes do not lie in its file as they are.

    Args:
        file: The URI of the file.
        uri: The URI of the image.
    """

    def __init__(self, file: str, uri: str) -> None:
        super().__init__(
            f"{uri} cannot be referenced, since its file is compressed or a Parquet file: unpack it, or set "
            "images.store to images"
        )
        self.file = file


@contextmanager
def referable(source: Source, folder: str | None) -> Iterator[None]:
    """Say which files of a source cannot be referenced, all at once.

    Args:
        source: Where they are.
        folder: One of its top-level folders; all if None.

    Yields:
        Nothing.

    Raises:
        ClipgenError: There was one while the `with` was read.
    """
    try:
        yield
    except NotReferable as error:
        uris = sorted({error.file, *(one.uri for one in source.files(folder) if _hides_bytes(source, one))})
        if len(uris) == 1:
            raise
        more = f" and {len(uris) - NAMED} more" if len(uris) > NAMED else ""
        raise ClipgenError(
            f"the images of {len(uris)} files cannot be referenced, since they are compressed or Parquet "
            f"files ({', '.join(uris[:NAMED])}{more}): unpack them, or set images.store to images"
        ) from error


def _hides_bytes(source: Source, file: File) -> bool:
    if not ZIP.search(file.path):
        return hides_bytes(file.path)
    first = next((item for item in source.items(file) if item.problem is None), None)
    return first is not None and first.offset is None


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
    return Outcome(file, row, unread=item.unread)


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
        NotReferable: The bytes lie nowhere as they are.
    """
    if config.store == "images" or not decoded.plain or text_of(file.path) != file.path:
        return None
    if item.offset is None:
        raise NotReferable(file.uri, item.uri)
    return {"file": file.uri, "offset": item.offset, "length": len(item.data), "stamp": file.stamp}
