"""Settings of the stage tokens."""

from pydantic import Field

from clipgen_core.schema import Frozen
from clipgen_core.settings.compute import ComputeConfig


class Config(Frozen):
    """The encoding of all images by the VQGAN."""

    where: str | None = Field(default=None, min_length=1)
    """Which images the transformer is trained on: an SQL condition on the columns of the images table, such
    as `score > 5 AND license IN ('cc0', 'cc-by')`. Set `vqgan.where` alike, or the VQGAN is trained on
    others. Null: all."""
    views: int = Field(default=1, ge=1, le=255)
    """Crops of each image to encode: its central square first, then random crops, half of them mirrored."""
    smallest_crop: float = Field(default=0.85, gt=0, le=1)
    """Smallest side of the random crops, as a share of the image's short side."""
    batch_size: int = Field(default=128, gt=0)
    """Images decoded at once. The VQGAN encodes at most 128 views in one forward pass."""
    block_size: int = Field(default=4096, gt=0)
    """Images in one commit. A killed run repeats at most one block."""
    rows_per_part: int = Field(default=4096, gt=0)
    """Rows of one Parquet part of the token shards. A row is one view of one image."""
    exclude_duplicates: float | None = Field(default=None, gt=0, le=1)
    """Cosine similarity from which on only one of a group of near-duplicates is kept. Null: keep all."""
    compute: ComputeConfig = ComputeConfig()
    """Where the VQGAN runs."""
