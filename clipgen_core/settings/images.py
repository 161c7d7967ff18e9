"""Settings of the stage images."""

import re
import sys
from typing import Literal

from pydantic import Field, model_validator

from clipgen_core.errors import ClipgenError
from clipgen_core.schema import IMAGES, REFERENCE, Frozen

COLUMN = re.compile(r"([a-z][a-z0-9_]*)(?::(text|number))?")
OWN = (*IMAGES.names, REFERENCE.name)  # columns of the images table that hold no metadata
KINDS = {"score": "number"}  # of the values of columns that say none; others are texts


class Accepted(Frozen):
    """Which image files are accepted, and how their samples are read."""

    min_side: int = Field(default=1, gt=0)
    """Smallest short side of an accepted image, in pixels. Smaller images are rejected."""
    max_pixels: int = Field(default=2**26, gt=0)
    """Largest width times height of an accepted image. Larger images are rejected before they are decoded."""
    max_aspect: float = Field(default=sys.float_info.max, ge=1)
    """Longest side of an accepted image, in short sides. Longer images are rejected before decoding."""
    max_missing: float = Field(default=0.0, ge=0, le=1)
    """Share of a JPEG's rows that may be missing because the file is cut short. The image loses them."""
    bands: tuple[int, ...] | None = None
    """Bands of a TIFF file that become red, green and blue, or one band for grey; they count from 1. Needs
    the extra `geo`. Null: what the file shows."""
    scale: Literal["file", "depth", "percentiles"] = "file"
    """Which values become black and white in images of more than 8 bits. `file`: those that the file names;
    it is rejected if it names none and uses a small part of its range. `depth`: the smallest and largest
    value of the type. `percentiles`: the 2nd and the 98th percentile of each band."""
    scale_range: tuple[float, float] | None = None
    """The values that become black and white, instead of `scale`."""
    decoder: str | None = None
    """A function that decodes files of other kinds, as `package.module:function`. It takes the bytes and
    returns an image of Pillow, or None. Null: such files are rejected."""

    @model_validator(mode="after")
    def _check_samples(self) -> "Accepted":
        if self.bands is not None and (len(self.bands) not in (1, 3) or min(self.bands) < 1):
            raise ClipgenError(
                f"images.bands {list(self.bands)} names no 1 or 3 bands from 1: name three or one"
            )
        if self.scale_range is not None and not self.scale_range[0] < self.scale_range[1]:
            raise ClipgenError(
                f"images.scale_range {list(self.scale_range)} does not rise: name the lower value first"
            )
        return self

    @property
    def chooses_samples(self) -> bool:
        """Whether a setting says which samples of a file are shown, and how."""
        return bool(self.bands or self.scale_range or self.scale == "percentiles")


class Wanted(Frozen):
    """Which files and members of archives are read."""

    key: str | None = None
    """Which images of an archive are read: the ending of the members of a tar or zip file, such as `jpg` or
    `mask.png`; the column of a Parquet file. Null: all members and columns that are images."""
    max_bytes: int = Field(default=2**28, gt=0)
    """Largest image file, in bytes. Larger files are rejected unread."""
    columns: tuple[str, ...] = ()
    """Metadata to keep with each image, as optional columns of the images table: `NAME`, or `NAME:number`
    for numbers. It is read from the JSON and text files beside an image, also in archives, and from the
    columns of a Parquet file."""

    @model_validator(mode="after")
    def _check_columns(self) -> "Wanted":
        for one in self.columns:
            parsed = COLUMN.fullmatch(one)
            if not parsed or parsed[1] in OWN:
                raise ClipgenError(
                    f"images.columns names {one!r}: write NAME, NAME:text or NAME:number in small letters, "
                    f"other than {', '.join(OWN)}"
                )
        if len(self.kinds) < len(self.columns):
            raise ClipgenError(f"images.columns names a column twice: {', '.join(self.columns)}")
        return self

    @property
    def kinds(self) -> dict[str, str]:
        """What each column holds, text or number, by its name."""
        parsed = [one.partition(":") for one in self.columns]
        return {name: kind or KINDS.get(name, "text") for name, _, kind in parsed}

    def too_large(self, size: int) -> str | None:
        """Why a file of `size` bytes is not read; None if it is."""
        return f"{size} bytes are more than {self.max_bytes}" if size > self.max_bytes else None


class Config(Wanted, Accepted):
    """Which images are accepted, how they are stored, and how the source is read."""

    min_side: int = Field(default=16, gt=0)
    """Smallest short side of an accepted image, in pixels. Smaller images are rejected."""
    max_aspect: float = Field(default=50.0, ge=1)
    """Longest side of an accepted image, in short sides. Longer images are rejected before decoding."""
    longest_side: int | None = Field(default=None, gt=0)
    """Longest side of a stored image, in pixels; larger images are reduced to it. Null: images are stored as
    their files are."""
    store: Literal["images", "references"] = "images"
    """What the images table holds. `images`: the images. `references`: where the images lie in the source,
    from which they are read again whenever they are needed."""
    columns: tuple[str, ...] = ("caption", "license", "url", "score", "label")
    """Metadata to keep with each image, as optional columns of the images table: `NAME`, or `NAME:number`
    for numbers. It is read from the JSON and text files beside an image, also in archives, and from the
    columns of a Parquet file."""
    batch_size: int = Field(default=4096, gt=0)
    """Most images in one commit. A killed run repeats at most one commit."""
    batch_bytes: int = Field(default=2**28, gt=0)
    """Bytes of image files after which a commit is made even if it holds fewer images."""
    readers: int = Field(default=8, gt=0)
    """Threads that read and decode image files."""
    retry_rejects: bool = False
    """Whether to read files with rejected images again although they have not changed."""
    mirror_after_days: float | None = Field(default=None, ge=0)
    """Days after which images are forgotten whose files have left the source. They count from the run that
    first misses a file, and a file that comes back ends them. Null: such images are kept."""
    read_again: bool = False
    """Whether to read all files again although they have not changed: for columns that are new, and for
    metadata beside images."""

    @model_validator(mode="after")
    def _check_store(self) -> "Config":
        if self.store == "references" and self.longest_side is not None:
            raise ClipgenError(
                "images.longest_side reduces stored images, and images.store is references: set one of them"
            )
        return self
