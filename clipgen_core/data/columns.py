"""The metadata of an image that a source holds beside it: caption, licence, URL, score, label and others.

Knows how sources name it and what kind of value each column holds; knows nothing of how files are read.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from clipgen_core.data.names import text_of
from clipgen_core.errors import first_line
from clipgen_core.settings.images import Wanted

NONE: Mapping[str, Any] = MappingProxyType({})
ALSO = {  # what sources call a column besides its name
    "caption": ("txt", "text"),
    "license": ("licence",),
    "url": ("image_url",),
    "score": ("aesthetic", "aesthetic_score"),
    "label": ("cls", "class", "class_name"),
}
LARGEST = 2**20  # bytes of a file beside an image; larger ones are no metadata of one image
LONGEST = 2**14  # characters of a text that are kept
TYPES = {"text": pa.string(), "number": pa.float64()}


class Unread(ValueError):
    """A file of metadata cannot be read: its name, and why."""


class Columns:
    """The columns that a setting names.

    Args:
        wanted: Names them.
    """

    def __init__(self, wanted: Wanted) -> None:
        self.kinds = wanted.kinds
        self.names = {also: name for name in self.kinds for also in ALSO.get(name, ())}
        self.names |= {name: name for name in self.kinds}

    @property
    def fields(self) -> list[pa.Field]:
        """The columns for the images table."""
        return [pa.field(name, TYPES[kind]) for name, kind in self.kinds.items()]

    def of_record(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the columns that a record has, whatever the case of their names."""
        found: dict[str, Any] = {}
        for key, value in record.items():
            name = self.names_one(key)
            if name and (name not in found or key.lower() == name):
                kept = _number(value) if self.kinds[name] == "number" else _text(value)
                found |= {} if kept is None else {name: kept}
        return found

    def names_one(self, key: str) -> str | None:
        """The column that a source calls so, whatever the case; None if that is none."""
        return self.names.get(re.sub(r"\W", "_", key.lower()))

    def of_file(self, name: str, data: bytes) -> dict[str, Any]:
        """The values that a file beside an image holds.

        Args:
            name: Its name: a JSON file has columns by name, and the ending of another names its column.
            data: Its bytes.

        Returns:
            The values by column; none if the file is empty.

        Raises:
            Unread: It is damaged.
        """
        ending = ending_of(name)
        try:
            if not ending.endswith("json"):
                return self.of_record({ending: data.decode("utf-8-sig")})
            record = json.loads(data or b"{}")
        except (ValueError, RecursionError) as error:
            kind = "JSON" if ending.endswith("json") else "text in UTF-8"
            raise Unread(f"{text_of(name)} (it is no {kind}: {first_line(error)})") from error
        return self.of_record(record) if isinstance(record, dict) else {}

    def hold(self, name: str, size: int) -> bool:
        """Whether a file may hold values.

        Args:
            name: Its name.
            size: In bytes.

        Returns:
            Whether it is worth reading.
        """
        ending = ending_of(name)
        return bool(self.names) and size <= LARGEST and (ending.endswith("json") or ending in self.names)

    def beside(self, files: Iterable[tuple[str, int]]) -> dict[str, list[str]]:
        """The files that may hold values, by the sample that they belong to.

        Args:
            files: Names and sizes in bytes.

        Returns:
            Names by sample, JSON files first.
        """
        found: dict[str, list[str]] = {}
        for name, size in files:
            if self.hold(name, size):
                found.setdefault(sample_of(name), []).append(name)
        return {sample: sorted(names, key=_not_json) for sample, names in found.items()}


def sample_of(name: str) -> str:
    """What the files of an image share, as in WebDataset: their path up to the first dot of the name."""
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.partition('.')[0]}"


def ending_of(name: str) -> str:
    """What a name has after its first dot, in small letters."""
    return name.rpartition("/")[2].partition(".")[2].lower()


def _not_json(name: str) -> bool:
    return not name.lower().endswith("json")


def _text(value: Any) -> str | None:
    """A value as text; the members of a list are lines."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, list):
        value = "\n".join(filter(None, map(_text, value)))
    elif not isinstance(value, str):
        value = "" if value is None or value != value else json.dumps(value, default=str, ensure_ascii=False)
    return text_of(value.strip())[:LONGEST] or None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
