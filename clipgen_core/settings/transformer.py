"""Settings of the stage transformer."""

from typing import Annotated

from pydantic import Field, model_validator

from clipgen_core.errors import ClipgenError
from clipgen_core.schema import Frozen
from clipgen_core.settings.catalogue import MAY_CHANGE
from clipgen_core.settings.models import GapConfig, TransformerConfig
from clipgen_core.settings.sampling import SamplingConfig
from clipgen_core.settings.training import TrainConfig


class Config(Frozen):
    """The transformer, its training, and the defaults of generation."""

    model: TransformerConfig
    """Architecture of the transformer."""
    train: TrainConfig
    """Optimization of the transformer."""
    sampling: Annotated[SamplingConfig, MAY_CHANGE] = SamplingConfig()
    """Defaults of generation, stored with the model."""
    gap: GapConfig = GapConfig()
    """Training against the gap between text and image embeddings."""
    drop_condition: float = Field(default=0.1, ge=0, lt=1)
    """Share of the rows trained with the null condition, which classifier-free guidance needs
    (arXiv:2207.12598)."""
    corrupt: float = Field(default=0.0, ge=0, lt=1)
    """Largest share of a row's input codes that are replaced by random ones in training, so that the model
    learns to continue after its own mistakes."""
    embedding_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Weight of CLIP-GEN's embedding reconstruction loss (arXiv:2203.00386, section 3.3). 0: not computed."""
    recompute: Annotated[bool, MAY_CHANGE] = False
    """Whether to recompute blocks in the backward pass (activation checkpointing): slower, less memory."""
    start_from: str | None = Field(default=None, min_length=1)
    """Weights to start from (a warm start): `latest`, the newest transformer checkpoint under the root; the
    address of a checkpoint or of a generator folder; or a registered model, `models:/NAME@ALIAS`. The VQGAN
    and the CLIP must be those of the token shards. Null: train from scratch."""

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.sampling.steps and self.model.order != "any":
            raise ClipgenError(
                f"sampling.steps is {self.sampling.steps}, but a model of order {self.model.order} takes one "
                "step a code: set it to 0, or model.order to any"
            )
        return self
