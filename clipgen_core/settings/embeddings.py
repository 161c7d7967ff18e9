"""Settings of the stage embeddings."""

from pydantic import Field

from clipgen_core.schema import Frozen
from clipgen_core.settings.compute import ComputeConfig

INDEX_FROM = 50_000  # rows; below, exact search is as fast


class Config(Frozen):
    """block_size: pictures a commit, done again at most after a kill; index_from: rows from which on the
    table gets a vector index."""

    batch_size: int = Field(default=256, gt=0)
    block_size: int = Field(default=4096, gt=0)
    index_from: int = Field(default=INDEX_FROM, gt=256)
    compute: ComputeConfig = ComputeConfig()
