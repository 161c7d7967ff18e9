"""Settings of the stage transformer."""

from pydantic import Field

from clipgen_core.schema import Frozen
from clipgen_core.settings.models import GapConfig, TransformerConfig
from clipgen_core.settings.sampling import SamplingConfig
from clipgen_core.settings.training import TrainConfig


class Config(Frozen):
    """corrupt: up to this share of a row's input codes is replaced by random ones in training, so that
    the model learns to go on from its own mistakes; drop_condition: share of rows trained without;
    recompute: spend time to save memory: blocks are computed again in the backward pass."""

    model: TransformerConfig
    train: TrainConfig
    sampling: SamplingConfig = SamplingConfig()
    gap: GapConfig = GapConfig()
    drop_condition: float = Field(default=0.1, ge=0, lt=1)
    corrupt: float = Field(default=0.0, ge=0, lt=1)
    embedding_weight: float = Field(default=0.0, ge=0)
    recompute: bool = False
