"""Parquet files of images, as img2dataset and Hugging Face write them."""

import base64
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipgen_core.data.columns import Columns, Unread
from clipgen_core.data.kinds import SNIFFED, starts_as_image
from clipgen_core.data.member import Member
from clipgen_core.data.names import text_of
from clipgen_core.settings.images import Wanted

IMAGE_COLUMN = re.compile(r"(image|img|picture|photo|jpe?g|png|webp|bytes|image_bytes|content)(_?\d+)?$")
ROWS = 64  # of a file at once
BUFFER = 2**20
NESTED = ("json", "metadata", "meta")  # columns that may hold a record


def read_parquet(opened: Any, wanted: Wanted) -> Iterator[Member]:
    """The images of a Parquet file.

    Args:
        opened: The file, opened for reading bytes.
        wanted: Which columns hold the images, and which metadata is kept.

    Yields:
        Images and problems.
    """
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
        elif instead := _without_bytes(file):
            yield Member("", problem=instead, lost=rows)
        return
    row, metadata = 0, _Metadata(wanted, schema, holding)
    for batch in file.iter_batches(batch_size=ROWS, columns=columns + metadata.read):
        for values in batch.to_pylist():
            kept = metadata.of(values)
            for member in _row(row, {name: values[name] for name in columns}, len(columns) > 1, wanted):
                yield member._replace(columns=kept)
            row += 1


class _Metadata:
    """The metadata of a file's rows.

    read: the columns that may have it; labels: the names of the classes of a column, as Hugging Face's
    metadata lists them.
    """

    def __init__(self, wanted: Wanted, schema: pa.Schema, holding: list[str]) -> None:
        self.columns, features = Columns(wanted), _features(schema)
        named = [name for name in schema.names if name not in holding]
        self.read = [name for name in named if name in NESTED or self.columns.names_one(name)]
        self.read = self.read if self.columns.names else []
        self.labels = {name: features[name]["names"] for name in self.read if _is_class(features.get(name))}

    def of(self, row: Mapping[str, Any]) -> dict[str, Any]:
        values = {name: self._labelled(name, row[name]) for name in self.read}
        nested: dict[str, Any] = {}
        for value in (values.pop(name) for name in NESTED if name in values):
            text = value.encode() if isinstance(value, str) else None
            nested |= self.columns.of_record(value) if isinstance(value, dict) else {}
            with suppress(Unread):  # a text that is no record
                nested |= self.columns.of_file(".json", text) if text else {}
        return nested | self.columns.of_record(values)

    def _labelled(self, name: str, value: Any) -> Any:
        labels = self.labels.get(name, ())
        return labels[value] if isinstance(value, int) and 0 <= value < len(labels) else value


def _row(row: int, values: dict[str, Any], several: bool, wanted: Wanted) -> Iterator[Member]:
    """The images of a row, each of its own column; none if it is null, as where a download failed, and a
    problem if it holds anything else."""
    images = [(name, data) for name, value in values.items() for data in _bytes_of(value)]
    for number, (name, data) in enumerate(images):
        more = f".{name}" if several else ""
        more += f".{number}" if len(images) > len(values) or (not several and len(images) > 1) else ""
        if problem := wanted.too_large(len(data)):
            yield Member(f"{row}{more}", problem=problem, reason="too_large")
        else:
            yield Member(f"{row}{more}", data)
    if not images and not _is_null([*values.values()]):
        path = next(
            (value["path"] for value in values.values() if isinstance(value, dict) and value.get("path")),
            None,
        )
        named = f", but names the file {text_of(str(path))}: put the files into the source" if path else ""
        yield Member(str(row), problem=f"the row holds no bytes of an image{named}", reason="empty")


def _is_null(value: Any) -> bool:
    held = value.values() if isinstance(value, dict) else value
    return all(map(_is_null, held)) if isinstance(value, dict | list) else value is None


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
    features = _features(schema)
    said = [name for name in holding if _of_type(features.get(name), "Image")]
    return said or [name for name in holding if IMAGE_COLUMN.match(name.lower())]


def _features(schema: pa.Schema) -> dict[str, Any]:
    """What Hugging Face's metadata says of the columns."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _of_type(feature: Any, kind: str) -> bool:
    return isinstance(feature, dict) and feature.get("_type") == kind


def _is_class(feature: Any) -> bool:
    return _of_type(feature, "ClassLabel") and isinstance(feature.get("names"), list)


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


def _without_bytes(file: pq.ParquetFile) -> str | None:
    """What is wrong with a file whose columns are named as images and hold texts that stand for them."""
    named = [name for name in file.schema_arrow.names if IMAGE_COLUMN.match(name.lower())]
    if not named or not file.metadata.num_rows:
        return None
    for row in next(file.iter_batches(batch_size=ROWS, columns=named)).to_pylist():
        for name, value in row.items():
            text = value if isinstance(value, str) else ""
            if re.match(r"\w+://", text):
                return (
                    f"the column {name!r} holds addresses of images instead of their bytes: download them "
                    "first, for example by img2dataset"
                )
            if starts_as_image(_of_base64(text)):
                return f"the column {name!r} holds images as base64: store their bytes, decoded, in it"
    return None


def _of_base64(text: str) -> bytes:
    """The first bytes that a text stands for; none if it is no base64."""
    begins = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode(begins[: 4 * SNIFFED // 3 // 4 * 4], validate=True)
    except ValueError:
        return b""
