"""What a source holds, estimated from a sample of its files.

Knows how files are listed, read and decoded; knows no model.
"""

import itertools
import math
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.parquet as pq

from clipgen_core.data.archives import PARQUET, ZIP, members
from clipgen_core.data.decode import decode
from clipgen_core.data.kinds import is_image_name
from clipgen_core.data.rejected import Rejected
from clipgen_core.data.sources import File, Item, Source
from clipgen_core.errors import ClipgenError
from clipgen_core.filesystem import retried
from clipgen_core.settings import images

SAMPLE = 64  # files that are read
MEMBERS = 64  # images of an archive that are decoded


@dataclass(frozen=True)
class Survey:
    """What a source holds.

    Attributes:
        files: Number of files.
        size: Their bytes.
        images: Number of images, estimated if there are more files than the sample or larger archives.
        usable: Share of the sampled images that can be used.
        mean_side: Mean side of the usable images, in pixels.
        seconds: Of reading and decoding an image.
    """

    files: int
    size: int
    images: int
    usable: float
    mean_side: float
    seconds: float


def survey(url: str, config: images.Config) -> Survey:
    """Estimate what a source holds; of an archive, only the first images are read.

    Args:
        url: Folder of the images, a local path or an fsspec URL.
        config: Which images are read and accepted.

    Returns:
        The estimate.

    Raises:
        ClipgenError: The source has no file, or no image of the sample can be used.
    """
    source = Source(url, config)
    files, size, sample = _listed(source)
    sides, read, images, seconds = list[float](), 0, 0.0, 0.0
    for file in sample:
        began, items = time.perf_counter(), 0
        for item in itertools.islice(source.items(file), MEMBERS):
            items += 1
            sides += _sides(item, config)
        seconds += time.perf_counter() - began
        images += _members(source, file) if items == MEMBERS else items
        read += items
    if not sides:
        raise ClipgenError(f"none of the {read} images sampled from {url} can be used: check the folder")
    return Survey(
        files=files,
        size=size,
        images=round(images * files / len(sample)),
        usable=len(sides) / read,
        mean_side=sum(sides) / len(sides),
        seconds=seconds / read,
    )


def _listed(source: Source) -> tuple[int, int, list[File]]:
    """(files, bytes, a sample spread over them)."""
    files, size, sample = 0, 0, list[File]()
    for file in source.files():
        if len(sample) < SAMPLE or files % math.ceil(files / SAMPLE) == 0:
            sample.append(file)
        files, size = files + 1, size + file.size
    if not files:
        raise ClipgenError(f"the source folder {source.url} is empty: put images into it")
    taken = min(len(sample), SAMPLE)
    return files, size, [sample[i * len(sample) // taken] for i in range(taken)]


def _sides(item: Item, config: images.Config) -> Iterator[float]:
    """The mean side of an image, if it can be used."""
    try:
        image = decode(item.data, config).image
    except Rejected:
        return
    yield (image.width * image.height) ** 0.5


def _members(source: Source, file: File) -> float:
    """The number of images of a large archive: by its directory, or by the bytes of the first images."""
    with retried(source.filesystem.open, file.path, "rb") as opened:
        if ZIP.search(file.path):
            key = (source.wanted.key or "").lower()
            names = zipfile.ZipFile(opened).namelist()
            return max(sum(is_image_name(name) and name.lower().endswith(key) for name in names), MEMBERS)
        if PARQUET.search(file.path):
            return float(pq.ParquetFile(opened).metadata.num_rows)
        ahead = members(file.path, opened, source.wanted)
        for _ in itertools.islice(ahead, MEMBERS):
            pass
        return MEMBERS * file.size / max(opened.tell(), 1)
