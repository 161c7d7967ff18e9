"""Images that the images table refers to: read again from their source, and compared with their ids.

Knows references and the stores that they name; knows nothing of how images are decoded.
"""

import errno
import functools
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.implementations.local import LocalFileSystem

from clipgen_core.data.prefetch import pool_size
from clipgen_core.data.remote import REQUESTS, Reader
from clipgen_core.errors import ClipgenError, first_line, reason_of
from clipgen_core.filesystem import retried
from clipgen_core.schema import REFERENCE
from clipgen_core.storage import remedy

if TYPE_CHECKING:
    import lance

Reference = dict[str, Any]
NAMED = 3  # images that a message names


class Gone(Exception):
    """An image that its source no longer holds.

    Args:
        file: The file that held it.
        reason: Why it cannot be read.
    """

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.reason = reason


class Images(NamedTuple):
    """Rows of the images table with their images.

    Attributes:
        rows: Those whose images could be read, with the bytes in the column `image`.
        gone: Why the others could not, by id.
    """

    rows: pa.Table
    gone: dict[str, Gone]

    def required(self, table: "lance.LanceDataset") -> pa.Table:
        """The rows, if none is gone.

        Raises:
            ClipgenError: Some are.
        """
        if not self.gone:
            return self.rows
        named = ", ".join(f"{image_id} ({one})" for image_id, one in [*self.gone.items()][:NAMED])
        more = f" and {len(self.gone) - NAMED} more" if len(self.gone) > NAMED else ""
        count = "1 image" if len(self.gone) == 1 else f"{len(self.gone)} images"
        raise ClipgenError(
            f"{count} of {table.uri} cannot be read again: {named}{more}: put the files back, or if they "
            f"have changed {remedy('images')}, or forget the images by `clipgen forget --root "
            f"{table.uri.rpartition('/')[0]} {' '.join([*self.gone][:NAMED])}`"
        )


def take_images(
    table: "lance.LanceDataset", rows: Sequence[int], columns: Sequence[str] = ("id", "image")
) -> Images:
    """Read rows of the images table and their images.

    Args:
        table: The images table.
        rows: Row numbers.
        columns: The columns to read; without `image`, no image is read.

    Returns:
        The rows, in order, without references.

    Raises:
        ClipgenError: A source that is referred to does not answer.
    """
    refers = reference_of(table) if "image" in columns else []
    return _with_images(table.take(list(rows), columns=[*columns, *refers]))


def find_images(table: "lance.LanceDataset", where: str, columns: Sequence[str] = ("id", "image")) -> Images:
    """Read the rows of the images table that a condition selects, and their images.

    Args:
        table: The images table.
        where: An SQL condition.
        columns: The columns to read, `id` and `image` among them.

    Returns:
        The rows.

    Raises:
        ClipgenError: A source that is referred to does not answer.
    """
    return _with_images(table.to_table(columns=[*columns, *reference_of(table)], filter=where))


def reference_of(table: "lance.LanceDataset") -> list[str]:
    """The column of references, if a table has it."""
    return [REFERENCE.name] if REFERENCE.name in table.schema.names else []


def _with_images(rows: pa.Table) -> Images:
    """Read the images that rows refer to, many at once."""
    if REFERENCE.name not in rows.schema.names:
        return Images(rows, {})
    ids, data, gone = rows["id"].to_pylist(), rows["image"].to_pylist(), dict[str, Gone]()
    folders = rows["folder"].to_pylist() if "folder" in rows.schema.names else [""] * len(ids)
    reading: dict[int, Future[bytes]] = {}
    for row, reference in enumerate(rows[REFERENCE.name].to_pylist()):
        if reference is not None:
            pool = _pool(reference["file"].startswith("file:"))
            reading[row] = pool.submit(_read, ids[row], reference, folders[row])
    try:
        for row, future in reading.items():
            try:
                data[row] = future.result()
            except Gone as error:
                gone[ids[row]] = error
    finally:
        for future in reading.values():  # after an error
            future.cancel()
    image = rows.schema.get_field_index("image")
    made = rows.set_column(image, rows.schema.field(image), pa.array(data, pa.large_binary()))
    made = made.drop_columns([REFERENCE.name])
    if gone:
        made = made.filter(pc.invert(pc.is_in(made["id"], pa.array(list(gone)))))
    return Images(made, gone)


def are_there(files: Sequence[str]) -> list[bool]:
    """Whether files exist, by their URIs; one whose store does not answer counts as existing."""
    return list(_pool(False).map(_is_there, files))


def _is_there(file: str) -> bool:
    reader, path = _opened(file)
    try:
        return bool(retried(reader.filesystem.exists, path))
    except Exception:
        return True


@functools.cache
def _pool(local: bool) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(pool_size() if local else REQUESTS)


@functools.cache
def _reader(protocol: str, bucket: str) -> Reader:
    return Reader(fsspec.filesystem(protocol), bucket)


def _opened(uri: str) -> tuple[Reader, str]:
    """What reads a file, and its path there."""
    protocol, _, path = uri.partition("://")
    return _reader(protocol, "" if protocol == "file" else path.partition("/")[0]), path


def require_address(filesystem: Any, root: str, uri: str) -> None:
    """Refuse a source whose files cannot be opened by their URIs alone.

    Args:
        filesystem: The source's filesystem.
        root: The path of its folder there.
        uri: The URI of the folder.

    Raises:
        ClipgenError: It is such a source.
    """
    try:
        reader, path = _opened(uri)
        opens = path == root and reader.filesystem in (filesystem, fsspec.filesystem("file"))
    except Exception:  # of a filesystem that more must be said to
        opens = False
    if not opens:
        raise ClipgenError(
            f"the images of {uri} cannot be referenced, since their addresses alone do not open them: set "
            "images.store to images"
        )


def _read(image_id: str, reference: Reference, folder: str) -> bytes:
    """The bytes of an image in a top-level folder of its source.

    Raises:
        Gone: The file is no longer there, or holds other bytes there.
        ClipgenError: The store does not answer.
    """
    file = reference["file"]
    reader, path = _opened(file)
    try:
        data = retried(_range, reader, path, reference["offset"], reference["length"])
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        if isinstance(error, PermissionError) and not isinstance(reader.filesystem, LocalFileSystem):
            raise ClipgenError(
                f"{file} may not be read again ({reason_of(error)}): run again with credentials that its "
                "store accepts"
            ) from error
        around = _around(path, folder)
        if not any(_holds_files(reader.filesystem, one) for one in around):
            raise ClipgenError(
                f"{file} cannot be read again ({reason_of(error)}), nor any file beside it: run again when "
                "its source is there, or read the new address of the source first by `clipgen embed` or by "
                "raw_images in Dagster; if its files are gone for good, forget their images: "
                f"`clipgen forget --root ROOT --under {file.removesuffix(path)}{around[-1]}`"
            ) from error
        raise Gone(file, reason_of(error)) from error
    except Exception as error:
        raise ClipgenError(
            f"{file} cannot be read again ({first_line(error)}): run again when its store answers"
        ) from error
    if hashlib.sha256(data).hexdigest() != image_id:
        raise Gone(file, f"it has changed since it was read; it was {reference['stamp']}")
    return data


def _range(reader: Reader, path: str, start: int, length: int) -> bytes:
    """Some bytes of a file, fewer only if the file ends before."""
    try:
        data = reader.read(path, length, start, start + length)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of stores, if a file ends before the start
            raise
        data = b""
    if len(data) < length:
        reader.filesystem.invalidate_cache()
        if reader.filesystem.info(path)["size"] >= start + length:
            raise OSError(f"got {len(data)} of {length} bytes")
    return data


def _around(path: str, folder: str) -> list[str]:
    """The folder of a file, and the top-level folder of the source that it is in."""
    before, found, _ = path.rpartition(f"/{folder}/")
    return [path.rpartition("/")[0], *([f"{before}/{folder}"] if folder and found else [])]


def _holds_files(filesystem: Any, folder: str) -> bool:
    """Whether a folder is there and not empty, as a mount point without its mount would be."""
    try:
        if isinstance(filesystem, LocalFileSystem):
            with os.scandir(folder) as entries:
                return next(entries, None) is not None
        filesystem.invalidate_cache()
        return bool(filesystem.exists(folder))
    except Exception:
        return False
