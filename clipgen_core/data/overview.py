"""What a root's tables hold, in figures: sizes, formats, rejects. Reads the tables and changes nothing."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clipgen_core.data.tables import find_table, open_table, quoted, scan
from clipgen_core.storage import Storage

SHARES = (0.0, 0.05, 0.5, 0.95, 1.0)  # the quantiles of the sides that are shown


@dataclass(frozen=True)
class Overview:
    """The images of a root and what was not taken.

    Attributes:
        images: Rows of the images table.
        copies: Further places of these images.
        files: Files that were read, of which `others` hold no image.
        formats: Images of each format.
        sides: The short side in pixels at each of SHARES, from the smallest to the largest.
        rejects: Rejects for each reason.
    """

    images: int
    copies: int
    files: int
    others: int
    formats: dict[str, int]
    sides: tuple[int, ...]
    rejects: dict[str, int] = field(default_factory=dict)


def overview(out: Storage) -> Overview:
    """Count what the tables of a root hold.

    Raises:
        ClipgenError: There is no images table.
    """
    images, formats, sides = open_table(out.images), Counter[str](), [np.zeros(0, np.int32)]
    for batch in scan(images, ["format", "width", "height"]):
        formats.update(batch["format"].to_pylist())
        sides.append(np.minimum(batch["width"].to_numpy(), batch["height"].to_numpy()))
    short = np.concatenate(sides)
    return Overview(
        images=images.count_rows(),
        copies=_rows(out.copies),
        files=_rows(out.files),
        others=_rows(out.files, "items = 0"),
        formats=dict(formats.most_common()),
        sides=tuple(int(side) for side in np.quantile(short, SHARES)) if len(short) else (),
        rejects=dict(Counter(row["reason"] for row in rejects(out)).most_common()),
    )


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
