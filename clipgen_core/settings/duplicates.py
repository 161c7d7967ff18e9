"""Settings of the stage duplicates."""

from pydantic import Field

from clipgen_core.schema import Frozen
from clipgen_core.settings.compute import ComputeConfig


class Config(Frozen):
    """The search for near-duplicates among the embeddings."""

    threshold: float = Field(default=0.98, gt=0, le=1)
    """Cosine similarity from which on two images are reported as near-duplicates. It removes none:
    see the tokens stage's `exclude_duplicates`."""
    batch_size: int = Field(default=256, gt=0)
    """Embeddings looked up in one vector query."""
    block_size: int = Field(default=8192, gt=0)
    """Images in one commit. A killed run repeats at most one block."""
    compute: ComputeConfig = ComputeConfig()
    """Where the queries run."""
