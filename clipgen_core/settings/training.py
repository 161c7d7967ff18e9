"""How long and how fast to train: what every training stage shares."""

from typing import Literal

from pydantic import Field, model_validator

from clipgen_core.errors import ClipgenError
from clipgen_core.schema import Frozen

OptimizerName = Literal["adamw", "muon"]
Precision = Literal["auto", "bf16", "fp32"]


class TrainConfig(Frozen):
    """`steps` counts optimizer steps of `batch_size` pictures, over all processes together.

    accumulate: backward passes a step, for batches that do not fit in memory.
    patience: stop after so many checkpoints without a better validation loss, and use the best; 0 never.
    precision: auto is bf16 where the machine is fast in it, else fp32.
    parallel: what several processes do: ddp copies the model to each, fsdp shards it (FSDP2).
    """

    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    accumulate: int = Field(default=1, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    optimizer: OptimizerName = "adamw"
    warmup_share: float = Field(default=0.05, ge=0, lt=1)
    clip_norm: float = Field(default=1.0, gt=0)
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    precision: Precision = "auto"
    compile: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    seed: int = 0
    log_every: int = Field(default=10, gt=0)
    checkpoint_every: int = Field(default=100, gt=0)
    keep_checkpoints: int = Field(default=2, gt=0)
    patience: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if self.batch_size % self.accumulate:
            raise ClipgenError(
                f"batch_size {self.batch_size} is not divisible by accumulate {self.accumulate}: change one"
            )
        return self
