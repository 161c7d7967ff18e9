"""Take in pictures: every file under a source folder becomes a row of the images table or of the rejects.

In:  a folder on any fsspec filesystem, searched through all its subfolders
Out: {root}/images.lance (one row a distinct picture), {root}/rejects.lance (uri, reason, detail)
Run: `raw_images` in Dagster, or `clipgen embed FOLDER`.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from fsspec.core import url_to_fs
from PIL import Image
from pydantic import Field

from clipgen_core.data.pictures import Rejected, decode, decode_stored, fit_square, grid
from clipgen_core.data.tables import column, open_table, upsert
from clipgen_core.errors import ClipgenError, first_line
from clipgen_core.progress import track
from clipgen_core.schema import IMAGES, REJECTS, Frozen, digest_of_ids
from clipgen_core.storage import Storage
from clipgen_core.tracking import Tracker


class Config(Frozen):
    """What is taken: pictures with at least `min_side` and at most `max_pixels` pixels."""

    min_side: int = Field(default=16, gt=0)
    max_pixels: int = Field(default=2**26, gt=0)
    batch_size: int = Field(default=512, gt=0)
    readers: int = Field(default=8, gt=0)


@dataclass(frozen=True, kw_only=True)
class Result:
    table: str
    digest: str
    found: int
    added: int
    total: int
    rejects: dict[str, int]  # reason -> count in this source

    @property
    def reject_share(self) -> float:
        return sum(self.rejects.values()) / max(self.found, 1)


def run(config: Config, *, source: str, out: Storage, tracker: Tracker) -> Result:
    """Read every file of `source`; taking the same picture twice leaves one row."""
    filesystem, files, folder = list_files(source)
    added, reasons = 0, dict[str, int]()
    with track("images", len(files), "files") as meter:
        for start in range(0, len(files), config.batch_size):
            paths = files[start : start + config.batch_size]
            rows, rejects = _read_batch(config, filesystem, paths, folder)
            added += upsert(out.images, rows, "id", overwrite=False)
            upsert(out.rejects, rejects, "uri", overwrite=True)
            for reason in rejects["reason"].to_pylist():
                reasons[reason] = reasons.get(reason, 0) + 1
            meter.advance(len(paths))
    ids = column(out.images, "id")
    if not ids:
        raise ClipgenError(
            f"none of the {len(files)} files under {source} is a usable picture: "
            f"{out.rejects} says why for each"
        )
    result = Result(
        table=out.images,
        digest=digest_of_ids(ids),
        found=len(files),
        added=added,
        total=len(ids),
        rejects=reasons,
    )
    tracker.metrics({"images": result.total, "reject_share": result.reject_share}, step=0)
    return result


def list_files(source: str) -> tuple[Any, list[str], str]:
    """(filesystem, every file under the folder, the folder), hidden files left out."""
    filesystem, folder = url_to_fs(source if "://" in source else str(Path(source).expanduser()))
    if not filesystem.exists(folder):
        raise ClipgenError(f"the source folder {source} does not exist: check the path")
    if not filesystem.isdir(folder):
        raise ClipgenError(f"the source {source} is a file: name the folder that holds it")
    files = sorted(path for path in filesystem.find(folder) if not path.rsplit("/", 1)[-1].startswith("."))
    if not files:
        raise ClipgenError(f"the source folder {source} is empty: put pictures into it")
    return filesystem, files, folder.rstrip("/")


def _read_batch(config: Config, filesystem: Any, paths: list[str], folder: str) -> tuple[pa.Table, pa.Table]:
    with ThreadPoolExecutor(config.readers) as readers:
        outcomes = list(readers.map(lambda p: _read_file(config, filesystem, p, folder), paths))
    images = {row["id"]: row for row in outcomes if "id" in row}
    rejects = [row for row in outcomes if "reason" in row]
    rows = pa.Table.from_pylist(list(images.values()), schema=IMAGES)
    return rows, pa.Table.from_pylist(rejects, schema=REJECTS)


def _read_file(config: Config, filesystem: Any, path: str, folder: str) -> dict[str, Any]:
    """A row for the images table, or one for the rejects."""
    uri = filesystem.unstrip_protocol(path).encode("utf-8", "backslashreplace").decode()
    try:
        data = filesystem.cat_file(path)
    except Exception as error:
        return {"uri": uri, "reason": "unreadable", "detail": first_line(error)}
    try:
        picture = decode(data, max_pixels=config.max_pixels, min_side=config.min_side)
    except Rejected as rejected:
        return {"uri": uri, "reason": rejected.reason, "detail": rejected.detail}
    inside = path.removeprefix(folder).lstrip("/")
    return {
        "id": hashlib.sha256(data).hexdigest(),
        "uri": uri,
        "folder": inside.split("/")[0] if "/" in inside else "",
        "format": picture.format,
        "width": picture.image.width,
        "height": picture.image.height,
        "image": data,
    }


def preview(table: str, count: int = 24, size: int = 64) -> Image.Image:
    """A grid of pictures spread over the table."""
    rows = open_table(table)
    chosen = np.linspace(0, rows.count_rows() - 1, min(count, rows.count_rows())).astype(int)
    data = rows.take(chosen.tolist(), columns=["image"])["image"].to_pylist()
    return grid([fit_square(decode_stored(one), size) for one in data], columns=12)
