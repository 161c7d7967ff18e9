"""Settings of the stage duplicates."""

from pydantic import Field

from clipgen_core.schema import Frozen
from clipgen_core.settings.compute import ComputeConfig


class Config(Frozen):
    """threshold: pictures whose embeddings have at least this cosine count as near-duplicates."""

    threshold: float = Field(default=0.98, gt=0, le=1)
    batch_size: int = Field(default=256, gt=0)
    block_size: int = Field(default=8192, gt=0)
    compute: ComputeConfig = ComputeConfig()
