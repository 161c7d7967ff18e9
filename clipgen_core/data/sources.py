"""Sources of images: folders on any fsspec filesystem. Knows nothing of decoding or of tables."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from fsspec.implementations.local import LocalFileSystem

from clipgen_core.data.archives import StoreFault, is_archive, members
from clipgen_core.data.columns import Columns, Unread, ending_of
from clipgen_core.data.keys import digest_of_keys, keys_of_texts
from clipgen_core.data.kinds import SNIFFED, is_image_name, looks_like_image
from clipgen_core.data.listing import UNREADABLE, Entry, base, place, scan_local
from clipgen_core.data.names import local_path, text_of
from clipgen_core.data.remote import Reader
from clipgen_core.errors import ClipgenError, first_line, reason_of
from clipgen_core.filesystem import retried, stamp, url_to_fs
from clipgen_core.settings.images import Wanted

T = TypeVar("T")
ALL = Wanted()
LISTED_AT_ONCE = 8192


class File(NamedTuple):
    """A file of a source.

    Attributes:
        path: Its path on the filesystem.
        uri: Its URI, in characters that Arrow can hold.
        folder: The top-level folder that holds it, "" for files that are in none.
        size: Size in bytes.
        stamp: Changes when the content does: the store's ETag, else size and modification time.
        beside: Names of the files in its folder that may hold metadata of it.
    """

    path: str
    uri: str
    folder: str
    size: int
    stamp: str
    beside: Iterable[str] = ()


@dataclass(frozen=True)
class Item:
    """The bytes of one image, or the `problem` that prevents reading them.

    Attributes:
        uri: Its address.
        data: Its bytes.
        problem: Why there are none.
        reason: Of the reject that the problem becomes.
        lost: How many images the problem stands for; 0 if that is not known.
        columns: Its metadata.
        offset: Where its bytes begin in its file; None if they are not in it as they are.
        unread: A file of metadata that cannot be read, and why; "" if there is none.
    """

    uri: str
    data: bytes = b""
    problem: str | None = None
    reason: str = UNREADABLE
    lost: int = 1
    columns: Mapping[str, Any] = field(default_factory=dict)
    offset: int | None = None
    unread: str = ""


class Source:
    """A folder of images.

    Args:
        url: A local path or an fsspec URL.
        wanted: What is read.

    Raises:
        ClipgenError: The folder does not exist, is a file, or cannot be listed.
    """

    def __init__(self, url: str, wanted: Wanted = ALL) -> None:
        self.url, self.wanted, self.columns = url, wanted, Columns(wanted)
        self.filesystem, root = url_to_fs(url if "://" in url else local_path(url))
        self.filesystem.invalidate_cache()
        self.root = root.rstrip("/")
        self.is_local = isinstance(self.filesystem, LocalFileSystem)
        if not self.filesystem.exists(root):
            raise ClipgenError(f"the source folder {url} does not exist: check the path")
        if not self.filesystem.isdir(root):
            raise ClipgenError(f"the source {url} is a file: name the folder that holds it")
        self.reader = Reader(self.filesystem, self.root)
        self.base_uri = text_of(self.filesystem.unstrip_protocol(self.root))

    def folders(self) -> list[str]:
        """The top-level folders, sorted; "" stands for the files that are in none."""
        entries = list(self._scan(self.root))
        names = {text_of(entry.name) for entry in entries if entry.is_folder}
        return sorted(names | {""} if any(not entry.is_folder for entry in entries) else names)

    def files(self, folder: str | None = None) -> Iterator[File]:
        """All files that are not hidden, folder by folder; of one top-level folder if it is named.

        Linked folders are followed, each once. A folder that may not be read stands for itself: reading it
        gives the problem.
        """
        for top in self.folders() if folder is None else [folder]:
            for path, entries in self._walk(top):
                uri = self.base_uri + text_of(path[len(self.root) :])
                if entries is None:
                    yield File(path, uri, top, 0, UNREADABLE)
                there = [entry for entry in entries or () if not entry.is_folder]
                metadata = self.columns.beside((entry.name, entry.size) for entry in there)
                for entry in there:
                    file, beside = f"{path}/{entry.name}", metadata.get(entry.name, ())
                    yield File(file, f"{uri}/{text_of(entry.name)}", top, entry.size, entry.stamp, beside)

    def _walk(self, folder: str) -> Iterator[tuple[str, list[Entry] | None]]:
        """A top-level folder and the folders in it, with their entries; None where they may not be read."""
        if folder == "":
            yield self.root, list(self._scan(self.root))
            return
        waiting, seen = [self._path(folder)], set[tuple[int, int]]()
        while waiting:
            here = waiting.pop()
            if self.is_local and (inode := place(here)) is not None:
                if inode in seen:
                    continue  # a link to a folder that was walked
                seen.add(inode)
            try:
                entries = list(self._scan(here))
            except PermissionError:
                yield here, None
                continue
            yield here, entries
            waiting += [f"{here}/{entry.name}" for entry in entries if entry.is_folder]

    def _path(self, folder: str) -> str:
        """The path of a top-level folder, whose name may contain bytes that Arrow cannot hold."""
        found = (entry.name for entry in self._scan(self.root) if text_of(entry.name) == folder)
        return f"{self.root}/{next(found, folder)}"

    def _scan(self, path: str) -> Iterator[Entry]:
        """The entries of one folder that are not hidden, sorted by name."""
        if self.is_local:
            yield from (entry for entry in scan_local(path) if not entry.name.startswith("."))
            return
        for listed in sorted(retried(self.reader.ls, path), key=lambda e: str(e["name"])):
            name, size = str(listed["name"]), listed.get("size") or 0
            if listed["type"] == "directory" and name.rstrip("/") == path.rstrip("/") and name.endswith("/"):
                yield from self._behind_an_empty_name(path)
            elif name.rstrip("/") != path.rstrip("/") and not base(name).startswith("."):
                yield Entry(base(name), listed["type"] == "directory", size, stamp(listed, size))

    def _behind_an_empty_name(self, path: str) -> Iterator[Entry]:
        """The files under `path//`, a folder without a name, which stores allow and cannot list."""
        found = retried(self.filesystem.find, path, detail=True)
        self.filesystem.invalidate_cache()  # what `find` keeps there lacks folders without a name
        for name, listed in sorted(found.items()):
            if name.startswith(f"{path}//") and listed["type"] == "file":
                size = listed.get("size") or 0
                yield Entry(name[len(path) + 1 :], False, size, stamp(listed, size))

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
        return {path: Path(path).stat().st_mtime_ns for path, _ in self._walk(folder)}

    def is_archive(self, file: File) -> bool:
        """Whether the file may hold several images."""
        return is_archive(file.path)

    def items(self, file: File) -> Iterator[Item]:
        """The images of a file: the file itself, or the members of an archive; none if it is no image.

        Raises:
            ClipgenError: The store does not answer. Images that cannot be read are items with a problem.
        """
        try:
            yield from self._members(file) if is_archive(file.path) else self._image(file)
        except (FileNotFoundError, PermissionError) as error:
            if isinstance(error, PermissionError) and not self._is_of_one_file(error):
                raise _no_answer(file, error) from error
            yield Item(file.uri, problem=reason_of(error), reason=UNREADABLE)
        except StoreFault as error:
            raise _no_answer(file, error.__cause__ or error) from error
        except MemoryError as error:
            raise ClipgenError(
                f"there is not enough memory to read {file.uri}: lower images.readers"
            ) from error
        except ClipgenError:
            raise
        except Exception as error:
            raise _no_answer(file, error) from error

    def _is_of_one_file(self, refusal: PermissionError) -> bool:
        return self.is_local or self.reader.refuses_one(refusal, self.root)

    def _image(self, file: File) -> Iterator[Item]:
        problem = self.wanted.too_large(file.size)
        if problem or not is_image_name(file.path):
            known = file.size or self.is_local  # S3 refuses to give the first bytes of an empty file
            head = retried(self.reader.read, file.path, end=SNIFFED) if known else b""
            if not looks_like_image(file.path, head):
                return
            if problem:
                yield Item(file.uri, problem=problem, reason="too_large")
                return
        data = retried(self._whole, file)
        values, unread = self._metadata(file)
        yield Item(file.uri, data, columns=values, offset=0, unread=unread)

    def _metadata(self, file: File) -> tuple[dict[str, Any], str]:
        """What the files beside an image say of it, and one that cannot be read. Those of text are read for
        what JSON files leave open."""
        values, unread = dict[str, Any](), ""
        for name in file.beside:
            if name.lower().endswith("json") or self.columns.names[ending_of(name)] not in values:
                try:
                    data = self._beside(f"{file.path.rpartition('/')[0]}/{name}")
                    values = self.columns.of_file(name, data) | values
                except Unread as error:
                    unread = f"{file.uri.rpartition('/')[0]}/{error}"
        return values, unread

    def _beside(self, path: str) -> bytes:
        """The bytes of a file of metadata; none if it is gone."""
        try:
            return retried(self.reader.read, path)
        except FileNotFoundError:
            return b""
        except PermissionError as error:
            if not self._is_of_one_file(error):
                raise
            raise Unread(f"{base(path)} ({reason_of(error)})") from error

    def _whole(self, file: File) -> bytes:
        data = self.reader.read(file.path, file.size)
        if not self.is_local and len(data) < file.size:
            raise OSError(f"got {len(data)} of {file.size} bytes")
        return data

    def _members(self, file: File) -> Iterator[Item]:
        with retried(self.filesystem.open, file.path, "rb") as opened:
            for member in members(file.path, opened, self.wanted):
                uri = f"{file.uri}#{member.name}" if member.name else file.uri
                unread = member.unread and f"{file.uri}#{member.unread}"
                yield Item(uri, *member._replace(unread=unread)[1:])


def _no_answer(file: File, error: BaseException) -> ClipgenError:
    return ClipgenError(
        f"{file.uri} could not be read ({first_line(error)}): run it again when the store answers; "
        "images that were already ingested are kept"
    )


def in_lists(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Split items, such as files, into lists.

    Args:
        items: The items.
        size: Items a list; the last list may be shorter.

    Yields:
        The lists, in order.
    """
    remaining = iter(items)
    while batch := list(itertools.islice(remaining, size)):
        yield batch


def keys_of_files(files: Iterable[File]) -> np.ndarray:
    """One key for each file in its present state, S16 [n]."""
    return keys_of_states((file.uri, file.stamp) for file in files)


def keys_of_states(states: Iterable[tuple[str, str]]) -> np.ndarray:
    """One key for each (uri, stamp), S16 [n]."""
    return keys_of_texts(f"{uri}|{stamp}" for uri, stamp in states)
