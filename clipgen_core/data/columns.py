"""The metadata of an image that a source holds beside it: caption, licence, URL, score, label and others.

Knows how sources name it and what kind of value each column holds; knows nothing of how files are read.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
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
            if not isinstance(record, dict):
                raise ValueError(f"it holds a {type(record).__name__}, no names")
        except (ValueError, RecursionError) as error:
            kind = "JSON object" if ending.endswith("json") else "text in UTF-8"
            raise Unread(f"{text_of(name)} (it is no {kind}: {first_line(error)})") from error
        return self.of_record(record)

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

    def beside(self, files: Iterable[tuple[str, int]], samples: bool = False) -> dict[str, list[str]]:
        """The files that may hold values, by the image that they belong to.

        `1.left.json` belongs to `1.left.jpg`, and so does `1.left.jpg.json`. An image that has no such file
        takes that of its sample of WebDataset, `1.json`, unless this belongs to `1.jpg`.

        Args:
            files: Names and sizes in bytes of all files of a folder or an archive.
            samples: Whether WebDataset named them, so that `1.json` is of `1.left.jpg` and of `1.jpg`.

        Returns:
            Names by the name of the other file, in the order in which their values count: JSON files first.
        """
        others, holding = list[str](), list[str]()
        for name, size in files:
            (holding if self.hold(name, size) else others).append(name)
        if not holding:
            return {}
        stems, whole = _by(stem_of, others), set(others)
        own, shared = dict[str, list[str]](), dict[str, list[str]]()
        for name in sorted(holding, key=_not_json):
            stem = stem_of(name)
            images = [stem] if stem in whole else stems.get(stem, [])
            for image in images:
                own.setdefault(image, []).append(name)
            if samples or not images:
                shared.setdefault(stem, []).append(name)
        return {one: found for one in others if (found := own.get(one) or shared.get(sample_of(one)))}


def sample_of(name: str) -> str:
    """What the files of a sample of WebDataset share: their path up to the first dot of the name."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def stem_of(name: str) -> str:
    """A path without the ending of its name."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + (base.rpartition(".")[0] or base)


def ending_of(name: str) -> str:
    """What a name has after its last dot, in small letters; "" if it has none."""
    _, dot, ending = name.rpartition("/")[2].rpartition(".")
    return ending.lower() if dot else ""


def _by(key: Callable[[str], str], names: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(key(name), []).append(name)
    return found


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
