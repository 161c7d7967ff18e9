"""Sources of images: folders on any fsspec filesystem that hold image files, WebDataset `.tar` shards and
Parquet files with an image column (both as img2dataset writes them).

Knows how files are listed and read; knows nothing of decoding or of tables.
"""

import itertools
import os
import re
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from clipgen_core.data.keys import digest_of_keys, keys_of_texts
from clipgen_core.errors import ClipgenError, first_line
from clipgen_core.filesystem import retried, stamp, url_to_fs

IN_TAR = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|ppm)$", re.IGNORECASE)  # others are labels
IN_PARQUET = ("image", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "content")
PARQUET_ROWS = 64
LISTED_AT_ONCE = 8192


class File(NamedTuple):
    """A file of a source.

    Attributes:
        path: Its path on the filesystem.
        uri: Its URI, in characters that Arrow can hold.
        folder: The top-level folder that holds it, "" for files that are in none.
        size: Size in bytes.
        stamp: Changes when the content does: the store's ETag, else size and modification time.
    """

    path: str
    uri: str
    folder: str
    size: int
    stamp: str


@dataclass(frozen=True)
class Item:
    """The bytes of one image, or the `problem` that prevents reading them."""

    uri: str
    data: bytes = b""
    problem: str | None = None


class Source:
    """A folder of images.

    Args:
        url: A local path or an fsspec URL.

    Raises:
        ClipgenError: The folder does not exist, or is a file.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.filesystem, root = url_to_fs(url if "://" in url else str(Path(url).expanduser()))
        self.filesystem.invalidate_cache()
        self.root = root.rstrip("/")
        self.is_local = isinstance(self.filesystem, LocalFileSystem)
        if not self.filesystem.exists(root):
            raise ClipgenError(f"the source folder {url} does not exist: check the path")
        if not self.filesystem.isdir(root):
            raise ClipgenError(f"the source {url} is a file: name the folder that holds it")
        self.base_uri = _text(self.filesystem.unstrip_protocol(self.root))

    def folders(self) -> list[str]:
        """The top-level folders, sorted; "" stands for the files that are in none."""
        entries = [e for e in self.filesystem.ls(self.root, detail=True) if not _hidden(e["name"])]
        names = {_text(_base(e["name"])) for e in entries if e["type"] == "directory"}
        return sorted(names | {""} if any(e["type"] == "file" for e in entries) else names)

    def files(self, folder: str | None = None) -> Iterator[File]:
        """All files that are not hidden, folder by folder; of one top-level folder if it is named."""
        if folder is None:
            for one in self.folders():
                yield from self.files(one)
        elif folder == "":
            yield from self._in_folder(self.root, "")
        else:
            waiting = [self._path(folder)]
            while waiting:
                here = waiting.pop()
                yield from self._in_folder(here, folder, waiting)

    def _path(self, folder: str) -> str:
        """The path of a top-level folder, whose name may contain bytes that Arrow cannot hold."""
        names = (e["name"] for e in self.filesystem.ls(self.root, detail=True))
        return next((path for path in names if _text(_base(path)) == folder), f"{self.root}/{folder}")

    def _in_folder(self, path: str, folder: str, below: list[str] | None = None) -> Iterator[File]:
        """The files of one folder; its subfolders are added to `below`."""
        listed = _scan_local(path) if self.is_local else self._scan(path)
        uri = self.base_uri + _text(path[len(self.root) :])
        for name, is_folder, size, state in listed:
            if name.startswith("."):
                continue
            if not is_folder:
                yield File(f"{path}/{name}", f"{uri}/{_text(name)}", folder, size, state)
            elif below is not None:
                below.append(f"{path}/{name}")

    def _scan(self, path: str) -> Iterator[tuple[str, bool, int, str]]:
        for entry in sorted(retried(self.filesystem.ls, path, detail=True), key=lambda e: str(e["name"])):
            if entry["name"].rstrip("/") != path:
                folder, size = entry["type"] == "directory", entry.get("size") or 0
                yield _base(entry["name"]), folder, size, stamp(entry, size)

    def listing(self, folder: str) -> str:
        """A digest of all files of a top-level folder and their stamps, which changes when a file does."""
        return digest_of_keys(keys_of_files(files) for files in in_lists(self.files(folder), LISTED_AT_ONCE))

    def directories(self, folder: str) -> dict[str, int]:
        """The modification times of a top-level folder and all folders in it, by path, in nanoseconds.

        They tell whether files were added or removed without listing the files. Empty for object stores,
        which have no such times.
        """
        if not self.is_local:
            return {}
        top = self.root if folder == "" else self._path(folder)
        paths = [top] if folder == "" else [path for path, _, _ in os.walk(top)]
        return {path: Path(path).stat().st_mtime_ns for path in paths}

    def is_archive(self, file: File) -> bool:
        """Whether the file holds several images."""
        return file.path.endswith((".tar", ".parquet"))

    def items(self, file: File) -> Iterator[Item]:
        """The images of a file: the file itself, or the members of an archive."""
        if self.is_archive(file):
            yield from self.members(file)
        else:
            yield self.read(file)

    def read(self, file: File) -> Item:
        """Read an image file.

        On a remote store a failed read is retried. An error that persists stops the run, because an outage
        says nothing about the image.

        Raises:
            ClipgenError: The store does not answer.
        """
        try:
            data: bytes = self.filesystem.cat_file(file.path) if self.is_local else retried(self._whole, file)
        except (FileNotFoundError, PermissionError) as error:
            return Item(file.uri, problem=first_line(error))
        except Exception as error:
            if self.is_local:
                return Item(file.uri, problem=first_line(error))
            raise _no_answer(file, error) from error
        return Item(file.uri, data)

    def _whole(self, file: File) -> bytes:
        data: bytes = self.filesystem.cat_file(file.path)
        if len(data) < file.size:
            raise OSError(f"got {len(data)} of {file.size} bytes")
        return data

    def members(self, file: File) -> Iterator[Item]:
        """The images of a .tar or .parquet file, one by one; the last item of a damaged file is a problem.

        Raises:
            ClipgenError: The store does not answer.
        """
        read: Callable[[Any], Iterator[tuple[str, bytes]]] = (
            _tar_members if file.path.endswith(".tar") else _parquet_rows
        )
        try:
            with self.filesystem.open(file.path, "rb") as opened:
                for name, data in read(opened):
                    yield Item(f"{file.uri}#{name}", data)
        except (tarfile.TarError, pa.ArrowException, EOFError, OSError, ValueError) as error:
            if isinstance(error, OSError) and not self.is_local:
                raise _no_answer(file, error) from error
            yield Item(file.uri, problem=first_line(error))


def _no_answer(file: File, error: Exception) -> ClipgenError:
    return ClipgenError(
        f"{file.uri} could not be read ({first_line(error)}): run raw_images again when the store answers; "
        "images that were already ingested are kept"
    )


def unchanged(directories: dict[str, int]) -> bool:
    """Whether no file was added or removed since `Source.directories`; False if it returned nothing."""
    try:
        return bool(directories) and all(
            Path(path).stat().st_mtime_ns == before for path, before in directories.items()
        )
    except OSError:
        return False


def in_lists(files: Iterable[File], size: int) -> Iterator[list[File]]:
    """Split files into lists.

    Args:
        files: The files.
        size: Files a list; the last list may be shorter.

    Yields:
        The lists, in order.
    """
    remaining = iter(files)
    while batch := list(itertools.islice(remaining, size)):
        yield batch


def keys_of_files(files: Iterable[File]) -> np.ndarray:
    """One key for each file in its present state, S16 [n]."""
    return keys_of_states((file.uri, file.stamp) for file in files)


def keys_of_states(states: Iterable[tuple[str, str]]) -> np.ndarray:
    """One key for each (uri, stamp), S16 [n]."""
    return keys_of_texts(f"{uri}|{stamp}" for uri, stamp in states)


def _scan_local(path: str) -> Iterator[tuple[str, bool, int, str]]:
    """(name, is a folder, size, stamp) of a local folder's entries; a broken link counts as a file."""
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            try:
                state = entry.stat()
                size, folder = state.st_size, stat.S_ISDIR(state.st_mode)
                yield entry.name, folder, size, f"{size}-{state.st_mtime_ns}"
            except OSError:
                yield entry.name, False, 0, "unreadable"


def _tar_members(opened: Any) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=opened, mode="r|*") as archive:
        for member in archive:
            if member.isfile() and IN_TAR.search(member.name):
                content = archive.extractfile(member)
                yield member.name, content.read() if content else b""


def _parquet_rows(opened: Any) -> Iterator[tuple[str, bytes]]:
    file = pq.ParquetFile(opened)
    name = _image_column(file.schema_arrow)
    row = 0
    for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=[name]):
        for value in batch.column(0).to_pylist():
            data = value.get("bytes") if isinstance(value, dict) else value
            yield str(row), data or b""
            row += 1


def _image_column(schema: pa.Schema) -> str:
    """The column with the bytes: binary, or a struct with the field `bytes` (as Hugging Face writes it)."""
    for name in IN_PARQUET:
        if name in schema.names and (
            pa.types.is_binary(schema.field(name).type)
            or pa.types.is_large_binary(schema.field(name).type)
            or pa.types.is_struct(schema.field(name).type)
        ):
            return name
    raise ValueError(f"no image column: none of {', '.join(IN_PARQUET)} holds bytes")


def _base(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def _hidden(path: str) -> bool:
    return _base(path).startswith(".")


def _text(path: str) -> str:
    """A path that Arrow can hold, whatever bytes its names have."""
    return path if path.isascii() else path.encode("utf-8", "backslashreplace").decode()
