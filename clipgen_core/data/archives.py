"""Files that hold many images: .tar shards, also compressed or of tars, .zip files and Parquet files.

A damaged part becomes a problem of its own and the other images are still read. A fault of the store, by
contrast, is passed on as it is: it says nothing of the file.
"""

import errno
import io
import lzma
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa

from clipgen_core.data.columns import Columns
from clipgen_core.data.kinds import SNIFFED, is_image_name, looks_like_image
from clipgen_core.data.member import Member
from clipgen_core.data.names import Unique
from clipgen_core.data.parquet import read_parquet
from clipgen_core.data.samples import Sample, with_metadata
from clipgen_core.errors import first_line
from clipgen_core.filesystem import retried
from clipgen_core.settings.images import Wanted

TAR = re.compile(r"\.(tar|tar\.(gz|bz2|xz)|tgz|tbz2|txz)$", re.IGNORECASE)
ZIP, PARQUET = re.compile(r"\.zip$", re.IGNORECASE), re.compile(r"\.parquet$", re.IGNORECASE)
ZIP_HEADER, ENCRYPTED = 30, 1  # bytes before the name of a member, and the flag of encrypted ones
NESTED = 3  # tars in tars in a tar
ZIP_START, PARQUET_MARK = b"PK\x03\x04", b"PAR1"  # the mark begins and ends a Parquet file
PACKED = "it is an archive in another one, of which only tars in tars are read: unpack it"
NO_BYTES, CUT = "it has no bytes", "it has no end, so it was cut short"
DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    pa.ArrowException,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RuntimeError,  # and NotImplementedError
)  # of a file that is cut or altered anywhere, the readers raise all of these


class StoreFault(Exception):
    """A read that failed; its cause is the store's error."""


def is_archive(path: str) -> bool:
    """Whether a file may hold many images, by its name."""
    return _reader(path) is not None


def hides_bytes(path: str) -> bool:
    """Whether the images of an archive are not in it as they are, by its name."""
    return bool(PARQUET.search(path) or (TAR.search(path) and not path.lower().endswith(".tar")))


def members(path: str, opened: Any, wanted: Wanted) -> Iterator[Member]:
    """The images of an archive, one by one.

    Args:
        path: The archive's name, whose ending says what it is.
        opened: The archive, opened for reading bytes.
        wanted: Which members are read.

    Yields:
        Images and problems. A file without any image yields nothing.

    Raises:
        StoreFault: A read failed.
    """
    read = _reader(path)
    assert read, path
    guarded = _Guarded(opened)
    try:
        yield from read(guarded, wanted)
    except DAMAGE as error:
        yield _fault(guarded, error)


def _fault(opened: Any, error: BaseException) -> Member:
    """What is wrong with an archive that cannot be read: empty, cut short, or what the error says."""
    with suppress(*DAMAGE):  # of a store that reads forwards only
        opened.seek(0)
        start = opened.read(len(ZIP_START))
        if not start:
            return Member("", problem=NO_BYTES, reason="empty", lost=0)
        if start == ZIP_START and not zipfile.is_zipfile(opened):
            return Member("", problem=CUT, lost=0)
        if start == PARQUET_MARK:
            opened.seek(-len(PARQUET_MARK), io.SEEK_END)
            if opened.read() != PARQUET_MARK:
                return Member("", problem=CUT, lost=0)
    return Member("", problem=first_line(error) or type(error).__name__, lost=0)


def _is_hidden(name: str) -> bool:
    """Whether a member, or a folder that it is in, is hidden, or is what macOS adds to archives."""
    parts = (part for part in name.split("/") if part not in (".", ".."))
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _reader(path: str) -> Callable[[Any, Wanted], Iterator[Member]] | None:
    """What reads archives of this ending; None for other files."""
    readers = ((TAR, _tar), (ZIP, _zip), (PARQUET, read_parquet))
    return next((read for ending, read in readers if ending.search(path)), None)


class _Guarded(io.RawIOBase):
    """A file whose reads are retried, and fail as StoreFault; so damage can be told from an outage."""

    def __init__(self, opened: Any) -> None:
        self.opened = opened

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self.opened.seekable())

    def read(self, size: int = -1) -> bytes:
        return self._kept(self.opened.read, size)  # type: ignore[no-any-return]

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._kept(self.opened.seek, offset, whence))

    def tell(self) -> int:
        return int(self.opened.tell())

    def _kept(self, call: Callable[..., Any], *given: int) -> Any:
        try:
            return retried(call, *given)
        except ValueError:
            raise  # a damaged file that points outside of itself
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EINVAL:
                raise  # the same, of a file on a disk
            raise StoreFault(first_line(error)) from error


class _Header(tarfile.TarInfo):
    """Notes in its archive whether a block was no header, and whether the end was seen."""

    @classmethod
    def fromtarfile(cls, tarfile_: Any) -> "_Header":
        try:
            return super().fromtarfile(tarfile_)  # type: ignore[return-value]
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tarfile_.ended = True
            raise
        except tarfile.InvalidHeaderError:  # type: ignore[attr-defined]
            tarfile_.broken = True
            raise


class _Tar(tarfile.TarFile):
    ended = broken = False


def _tar(opened: Any, wanted: Wanted, depth: int = 1, start: int | None = 0) -> Iterator[Member]:
    """The images of a tar file, which begins at `start` of the archive; None if that is compressed."""
    unique, sample, problem = Unique(), Sample(Columns(wanted)), ""
    with _Tar.open(
        fileobj=opened, mode="r|*", ignore_zeros=True, tarinfo=_Header, errors="surrogateescape"
    ) as archive:
        state: Any = archive
        start = start if state.fileobj.comptype == "tar" else None
        try:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if content is None or _is_hidden(member.name):
                    continue
                offset = None if start is None or member.issparse() else start + member.offset_data
                yield from sample.ended_by(member.name)
                if TAR.search(member.name) and depth < NESTED:
                    for one in _inner(content, member.size, wanted, depth + 1, offset):
                        name = f"{member.name}/{one.name}" if one.name else member.name
                        yield one._replace(name=unique.name(name))
                elif sample.takes(member.name, member.size):
                    sample.add_file(member.name, content.read())
                elif is_archive(member.name):
                    yield Member(unique.name(member.name), problem=PACKED, reason="unsupported")
                else:
                    images = _member(member.name, member.size, content, wanted, unique)
                    sample.add_images(member.name, (one._replace(offset=offset) for one in images))
        except DAMAGE as error:
            problem = first_line(error)
    yield from sample.end()
    if state.broken:
        problem = problem or "blocks between its members are damaged"
    elif not state.ended:
        problem = f"{CUT}{f' ({problem})' if problem else ''}"
    if problem:
        yield Member("", problem=problem, lost=0)


def _inner(opened: Any, size: int, wanted: Wanted, depth: int, start: int | None) -> Iterator[Member]:
    """The images of a tar file in a tar file; if it cannot be read, the outer one goes on behind it."""
    if not size:
        yield Member("", problem=NO_BYTES, reason="empty", lost=0)
        return
    try:
        yield from _tar(opened, wanted, depth, start)
    except DAMAGE as error:
        yield Member("", problem=first_line(error) or type(error).__name__, lost=0)


def _member(name: str, size: int, content: Any, wanted: Wanted, unique: Unique) -> Iterator[Member]:
    """A file of an archive, if it is an image."""
    if not _has_key(name, wanted):
        return
    head = content.read(SNIFFED)
    if not looks_like_image(name, head):
        return
    if problem := wanted.too_large(size):
        yield Member(unique.name(name), problem=problem, reason="too_large")
    else:
        yield Member(unique.name(name), head + content.read())


def _has_key(name: str, wanted: Wanted) -> bool:
    return wanted.key is None or name.lower().endswith(f".{wanted.key.lower().lstrip('.')}")


def _stored_at(opened: Any, member: zipfile.ZipInfo) -> int | None:
    """Where the bytes of a member begin in a zip file; None if they are compressed."""
    if member.compress_type != zipfile.ZIP_STORED:
        return None
    opened.seek(member.header_offset)
    name, extra = struct.unpack("<HH", opened.read(ZIP_HEADER)[-4:])
    return member.header_offset + ZIP_HEADER + int(name) + int(extra)


def _zip(opened: Any, wanted: Wanted) -> Iterator[Member]:
    unique, columns = Unique(), Columns(wanted)
    with zipfile.ZipFile(opened) as archive:
        every = [one for one in archive.infolist() if not (one.is_dir() or _is_hidden(one.filename))]
        files = [member for member in every if not member.flag_bits & ENCRYPTED]
        yield from _encrypted([one.filename for one in every if one.flag_bits & ENCRYPTED], files, wanted)
        beside = columns.beside((member.filename, member.file_size) for member in files)
        for member in files:
            if is_archive(member.filename):
                yield Member(unique.name(member.filename), problem=PACKED, reason="unsupported")
                continue
            try:
                with archive.open(member) as content:
                    offset = _stored_at(opened, member)
                    read = _member(member.filename, member.file_size, content, wanted, unique)
                    images = [one._replace(offset=offset) for one in read]
            except DAMAGE as error:
                images = [Member(unique.name(member.filename), problem=first_line(error))]
            yield from (_beside(archive, one, columns, beside.get(member.filename, ())) for one in images)


def _beside(archive: zipfile.ZipFile, image: Member, columns: Columns, names: Sequence[str]) -> Member:
    """An image of a zip file with the metadata of members beside it."""
    files, damaged = list[tuple[str, bytes]](), ""
    for name in names:
        try:
            files.append((name, archive.read(name)))
        except DAMAGE as error:
            damaged = f"{name} ({first_line(error)})"
    image = with_metadata(image, columns, files)
    return image._replace(unread=damaged) if damaged else image


def _encrypted(names: list[str], others: list[zipfile.ZipInfo], wanted: Wanted) -> Iterator[Member]:
    """One problem for all encrypted members, if there are images among them or nothing else is there."""
    images = sum(is_image_name(name) and _has_key(name, wanted) for name in names)
    if images or (names and not others):
        yield Member("", problem="it is encrypted: unpack it", reason="unsupported", lost=images)
