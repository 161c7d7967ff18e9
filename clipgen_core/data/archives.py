"""Files that hold many images: .tar shards, also compressed or of tars, .zip files and Parquet files.

A damaged part becomes a problem of its own and the other images are still read. A fault of the store, by
contrast, is passed on as it is: it says nothing of the file.
"""

import io
import json
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from clipgen_core.data.kinds import SNIFFED, looks_like_image, starts_as_image
from clipgen_core.data.names import Unique, text_of
from clipgen_core.errors import first_line
from clipgen_core.filesystem import retried
from clipgen_core.settings.images import Wanted

TAR = re.compile(r"\.(tar|tar\.(gz|bz2|xz)|tgz|tbz2|txz)$", re.IGNORECASE)
ZIP, PARQUET = re.compile(r"\.zip$", re.IGNORECASE), re.compile(r"\.parquet$", re.IGNORECASE)
IMAGE_COLUMN = re.compile(r"(image|img|picture|photo|jpe?g|png|webp|bytes|image_bytes|content)(_?\d+)?$")
ROWS = 64  # of a Parquet file at once
BUFFER = 2**20
NESTED = 3  # tars in tars in a tar
DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    pa.ArrowException,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,
    NotImplementedError,
)


class StoreFault(Exception):
    """A read that failed; its cause is the store's error."""


class Member(NamedTuple):
    """An image of an archive, or a problem in the place of images.

    Attributes:
        name: Unique in the archive; "" for the archive itself.
        data: The bytes of the image.
        problem: Why they could not be read.
        reason: Of the reject that a problem becomes.
        lost: How many images the problem stands for; 0 if that is not known.
    """

    name: str
    data: bytes = b""
    problem: str | None = None
    reason: str = "damaged"
    lost: int = 1


def is_archive(path: str) -> bool:
    """Whether a file may hold many images, by its name."""
    return _reader(path) is not None


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
    try:
        yield from read(_Guarded(opened), wanted)
    except DAMAGE as error:
        yield Member("", problem=first_line(error) or type(error).__name__, lost=0)


def _reader(path: str) -> Callable[[Any, Wanted], Iterator[Member]] | None:
    """What reads archives of this ending; None for other files."""
    readers = ((TAR, _tar), (ZIP, _zip), (PARQUET, _parquet))
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


def _tar(opened: Any, wanted: Wanted, depth: int = 1) -> Iterator[Member]:
    unique, problem = Unique(), ""
    with tarfile.open(
        fileobj=opened, mode="r|*", ignore_zeros=True, tarinfo=_Header, errors="surrogateescape"
    ) as archive:
        state: Any = archive
        state.ended = state.broken = False
        try:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if content is None:
                    continue
                if TAR.search(member.name) and depth < NESTED:
                    yield from (
                        one._replace(name=unique.name(f"{member.name}/{one.name}"))
                        for one in _tar(content, wanted, depth + 1)
                    )
                else:
                    yield from _member(member.name, member.size, content, wanted, unique)
        except DAMAGE as error:
            problem = first_line(error)
    if state.broken:
        problem = problem or "blocks between its members are damaged"
    elif not state.ended:
        problem = f"it has no end, so it was cut short{f' ({problem})' if problem else ''}"
    if problem:
        yield Member("", problem=problem, lost=0)


def _member(name: str, size: int, content: Any, wanted: Wanted, unique: Unique) -> Iterator[Member]:
    """A file of an archive, if it is an image."""
    if wanted.key is not None and not name.lower().endswith(f".{wanted.key.lower().lstrip('.')}"):
        return
    head = content.read(SNIFFED)
    if not looks_like_image(name, head):
        return
    if problem := wanted.too_large(size):
        yield Member(unique.name(name), problem=problem, reason="too_large")
    else:
        yield Member(unique.name(name), head + content.read())


def _zip(opened: Any, wanted: Wanted) -> Iterator[Member]:
    unique = Unique()
    with zipfile.ZipFile(opened) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            try:
                with archive.open(member) as content:
                    yield from _member(member.filename, member.file_size, content, wanted, unique)
            except DAMAGE as error:
                yield Member(unique.name(member.filename), problem=first_line(error))


def _parquet(opened: Any, wanted: Wanted) -> Iterator[Member]:
    file = pq.ParquetFile(opened, buffer_size=BUFFER, pre_buffer=False)
    rows, schema = file.metadata.num_rows, file.schema_arrow
    holding = [field.name for field in schema if _holds_bytes(field.type)]
    if wanted.key is not None:
        columns = [wanted.key] if wanted.key in holding else []
    else:
        columns = _image_columns(schema, holding) or _by_content(file, holding)
    if not columns:
        if holding or wanted.key:
            named = f"no column {wanted.key!r}" if wanted.key else f"no image in {', '.join(holding)}"
            problem = f"{named} that holds images: set images.key to one of {', '.join(schema.names)}"
            yield Member("", problem=problem, lost=rows)
        return
    row = 0
    for batch in file.iter_batches(batch_size=ROWS, columns=columns):
        for values in batch.to_pylist():
            yield from _row(row, values, len(columns) > 1, wanted)
            row += 1


def _row(row: int, values: dict[str, Any], several: bool, wanted: Wanted) -> Iterator[Member]:
    """The images of a row, each of its own column; a row without any is a problem."""
    images = [(name, data) for name, value in values.items() for data in _bytes_of(value)]
    for number, (name, data) in enumerate(images):
        more = f".{name}" if several else ""
        more += f".{number}" if len(images) > len(values) or (not several and len(images) > 1) else ""
        if problem := wanted.too_large(len(data)):
            yield Member(f"{row}{more}", problem=problem, reason="too_large")
        else:
            yield Member(f"{row}{more}", data)
    if not images:
        path = next(
            (value["path"] for value in values.values() if isinstance(value, dict) and value.get("path")),
            None,
        )
        named = f", but names the file {text_of(str(path))}: put the files into the source" if path else ""
        yield Member(str(row), problem=f"the row holds no bytes of an image{named}", reason="empty")


def _bytes_of(value: Any) -> list[bytes]:
    if isinstance(value, bytes):
        return [value] if value else []
    if isinstance(value, dict):
        found = value.get("bytes") or next((one for one in value.values() if isinstance(one, bytes)), None)
        return [found] if found else []
    return [data for one in value for data in _bytes_of(one)] if isinstance(value, list) else []


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_bytes(kind.value_type)
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    )


def _image_columns(schema: pa.Schema, holding: list[str]) -> list[str]:
    """The columns that Hugging Face's metadata calls images, or whose names do."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        said = [name for name in holding if features.get(name, {}).get("_type") == "Image"]
    except (KeyError, ValueError, TypeError, AttributeError):
        said = []
    return said or [name for name in holding if IMAGE_COLUMN.match(name.lower())]


def _by_content(file: pq.ParquetFile, holding: list[str]) -> list[str]:
    """The columns whose first values begin as images do."""
    if not holding or not file.metadata.num_rows:
        return []
    first = next(file.iter_batches(batch_size=ROWS, columns=holding)).to_pylist()
    return [
        name
        for name in holding
        if any(starts_as_image(data[:SNIFFED]) for row in first for data in _bytes_of(row[name])[:1])
    ]
