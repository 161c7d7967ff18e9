"""What a root's tables hold, in figures: sizes, formats, rejects. Reads the tables and changes nothing."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipgen_core.data.referenced import reference_of
from clipgen_core.data.tables import find_table, open_table, quoted, scan
from clipgen_core.data.upkeep import size_on_disk
from clipgen_core.schema import REFERENCE
from clipgen_core.settings.images import OWN
from clipgen_core.storage import Storage

if TYPE_CHECKING:
    import lance

DIFFERENT, SHOWN = 1000, 5  # texts of a column that are counted, and those that are shown
SHARES = (0.0, 0.05, 0.5, 0.95, 1.0)  # the quantiles of the sides that are shown


@dataclass(frozen=True)
class Column:
    """A column of metadata.

    Attributes:
        name: Its name.
        count: Images that have a value in it.
        values: Images of its most frequent values, of texts that repeat.
        range: The smallest and the largest value, of numbers.
    """

    name: str
    count: int
    values: tuple[tuple[str, int], ...] = ()
    range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Overview:
    """The images of a root and what was not taken.

    Attributes:
        images: Rows of the images table.
        copies: Further places of these images.
        files: Files that were read, of which `others` hold no image.
        size: Bytes of the table on disk.
        referenced: Images that the table refers to, and `source_bytes` of them in their source.
        formats: Images of each format.
        sides: The short side in pixels at each of SHARES, from the smallest to the largest.
        rejects: Rejects for each reason.
        columns: The metadata of the images.
    """

    images: int
    copies: int
    files: int
    others: int
    size: int
    referenced: int
    source_bytes: int
    formats: dict[str, int]
    sides: tuple[int, ...]
    rejects: dict[str, int] = field(default_factory=dict)
    columns: tuple["Column", ...] = ()


def overview(out: Storage) -> Overview:
    """Count what the tables of a root hold.

    Raises:
        ClipgenError: There is no images table.
    """
    images, formats, sides = open_table(out.images), Counter[str](), [np.zeros(0, np.int32)]
    for batch in scan(images, ["format", "width", "height"]):
        formats.update(batch["format"].to_pylist())
        sides.append(np.minimum(batch["width"].to_numpy(), batch["height"].to_numpy()))
    short, lengths = np.concatenate(sides), _lengths(images)
    return Overview(
        images=images.count_rows(),
        copies=_rows(out.copies),
        files=_rows(out.files),
        others=_rows(out.files, "items = 0"),
        size=size_on_disk(images),
        referenced=len(lengths),
        source_bytes=int(lengths.sum()),
        formats=dict(formats.most_common()),
        sides=tuple(int(side) for side in np.quantile(short, SHARES)) if len(short) else (),
        rejects=dict(Counter(row["reason"] for row in rejects(out)).most_common()),
        columns=tuple(_columns(images)),
    )


def _lengths(images: "lance.LanceDataset") -> np.ndarray:
    """The bytes of each image that the table refers to, int64 [n]."""
    lengths = [np.zeros(0, np.int64)]
    where = f"{REFERENCE.name} IS NOT NULL"
    for batch in scan(images, [REFERENCE.name], where) if reference_of(images) else ():
        lengths.append(pc.struct_field(batch[REFERENCE.name], "length").to_numpy())
    return np.concatenate(lengths)


def _columns(images: "lance.LanceDataset") -> Iterator[Column]:
    for one in images.schema:
        if one.name in OWN:
            continue
        where = f"`{one.name}` IS NOT NULL"
        count, values = images.count_rows(filter=where), Counter[str]()
        smallest, largest = math.inf, -math.inf
        for batch in scan(images, [one.name], where):
            if not pa.types.is_string(one.type):
                least, most = pc.min_max(batch[one.name]).as_py().values()
                smallest, largest = min(smallest, least), max(largest, most)
            elif len(values) <= DIFFERENT:
                values.update(batch[one.name].to_pylist())
        shown = values.most_common(SHOWN) if len(values) <= min(DIFFERENT, count // 2) else []
        yield Column(one.name, count, tuple(shown), (smallest, largest) if smallest <= largest else None)


def rejects(out: Storage, reason: str | None = None) -> Iterator[dict[str, Any]]:
    """The images that could not be used.

    Args:
        out: The root.
        reason: Only those of one reason.

    Yields:
        Rows with uri, file, reason and detail.
    """
    table = find_table(out.rejects)
    where = f"reason = {quoted(reason)}" if reason else None
    for batch in scan(table, ["uri", "file", "reason", "detail"], where) if table else ():
        yield from batch.to_pylist()


def _rows(url: str, where: str | None = None) -> int:
    table = find_table(url)
    return int(table.count_rows(filter=where)) if table else 0
