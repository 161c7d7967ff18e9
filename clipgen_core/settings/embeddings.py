"""Settings of the stage embeddings."""

from pydantic import Field

from clipgen_core.schema import Frozen
from clipgen_core.settings.compute import ComputeConfig

INDEX_FROM = 50_000  # rows; below, exact search is as fast


class Config(Frozen):
    """The embedding of all images by CLIP."""

    batch_size: int = Field(default=256, gt=0)
    """Images in one forward pass of CLIP."""
    block_size: int = Field(default=4096, gt=0)
    """Images in one commit. A killed run repeats at most one block."""
    index_from: int = Field(default=INDEX_FROM, gt=256)
    """Rows from which on the table gets a vector index (IVF_PQ). With fewer, exact search is as fast."""
    compute: ComputeConfig = ComputeConfig()
    """Where CLIP runs."""
