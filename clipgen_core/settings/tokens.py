"""Settings of the stage tokens."""

from pydantic import Field

from clipgen_core.schema import Frozen
from clipgen_core.settings.compute import ComputeConfig


class Config(Frozen):
    """views: how many codings a picture gets: its central square, then random crops, half mirrored;
    block_size: pictures a commit, coded again at most after a kill; exclude_duplicates: leave all but one
    of pictures out whose embeddings have at least this cosine."""

    views: int = Field(default=1, ge=1, le=255)
    smallest_crop: float = Field(default=0.85, gt=0, le=1)
    batch_size: int = Field(default=128, gt=0)
    block_size: int = Field(default=4096, gt=0)
    rows_per_part: int = Field(default=4096, gt=0)
    exclude_duplicates: float | None = Field(default=None, gt=0, le=1)
    compute: ComputeConfig = ComputeConfig()
