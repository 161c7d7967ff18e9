"""Optimization settings that all training stages share."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from clipgen_core.errors import ClipgenError
from clipgen_core.schema import Frozen
from clipgen_core.settings.catalogue import MAY_CHANGE

OptimizerName = Literal["adamw", "muon"]
Precision = Literal["auto", "bf16", "fp32"]


class TrainConfig(Frozen):
    """How long a model trains, how fast, and what is saved on the way.

    A training is found again by its settings. Those marked MAY_CHANGE do not count: how it computes and what
    it saves may change between two runs of it.
    """

    steps: int = Field(gt=0)
    """Optimizer steps. The learning rate schedule spans all of them."""
    batch_size: int = Field(gt=0)
    """Examples in one optimizer step, over all processes and accumulated passes together."""
    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    """Peak learning rate. It warms up linearly, then decays to 2 % along half a cosine."""
    micro_batch: Annotated[int | None, MAY_CHANGE] = Field(default=None, gt=0)
    """Most examples in one backward pass of a process. A step is split into as many passes as that takes.
    Fewer examples need less memory and give the same curve. Null: one pass."""
    weight_decay: float = Field(default=0.05, ge=0, allow_inf_nan=False)
    """Decoupled weight decay of weight matrices; with `muon`, of the hidden ones only."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's running means of the gradient and of its square (arXiv:1711.05101)."""
    optimizer: OptimizerName = "adamw"
    """`adamw`; or `muon` for hidden weight matrices and AdamW for the rest (arXiv:2502.16982).
    The VQGAN always uses AdamW."""
    warmup_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from 0 to its peak."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest L2 norm of the gradient of all parameters. A larger gradient is scaled down to it."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the exponential moving average (EMA) of the weights, which is what is saved. 0: no EMA."""
    precision: Annotated[Precision, MAY_CHANGE] = "auto"
    """`bf16` autocasts matrix products, `fp32` does not and uses TF32 on GPUs. `auto`: `bf16` where it is
    faster, which is measured once per machine; a resumed training keeps what it began with. Other values
    apply to resumed ones too."""
    compile: Annotated[bool, MAY_CHANGE] = False
    """Whether to compile the model with `torch.compile`: of a transformer one block, whose code all others
    use. Validation runs without. The metric `first_step_seconds` says how long the first step took."""
    parallel: Annotated[Literal["ddp", "fsdp"], MAY_CHANGE] = "ddp"
    """With several processes: `ddp` copies the model to each, `fsdp` shards it over them (FSDP2); in `bf16`,
    the weights of a transformer's blocks are then exchanged in bf16."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the initial weights, of the order of the examples and of all random draws."""
    log_every: Annotated[int, MAY_CHANGE] = Field(default=10, gt=0)
    """Steps from one logged point of the training metrics to the next."""
    checkpoint_every: Annotated[int, MAY_CHANGE] = Field(default=100, gt=0)
    """Steps from one validation and checkpoint to the next. A killed training resumes from the last one."""
    keep_checkpoints: Annotated[int, MAY_CHANGE] = Field(default=2, gt=0)
    """Latest checkpoints to keep. The one with the lowest validation loss is kept as well."""
    patience: int = Field(default=0, ge=0)
    """Stop early after this many validations without a lower loss, and use the best checkpoint. 0: never."""

    @property
    def bytes_per_parameter(self) -> int:
        """Of a parameter in training: fp32 weight, gradient, two moments and, where one is kept, average."""
        return 4 * (4 + (self.ema_decay > 0))

    def checkpoint_bytes(self, parameters: int) -> int:
        """Disk space of the checkpoints of a model while one more is written; gradients are not saved."""
        return (self.keep_checkpoints + 1) * parameters * (self.bytes_per_parameter - 4)

    def rows_at_once(self, most: int) -> int:
        """Rows to compute together in a validation, which so needs no more memory than the training."""
        return min(self.micro_batch or self.batch_size, most)

    def passes(self, processes: int = 1) -> int:
        """Backward passes of each process in one optimizer step.

        Args:
            processes: Among which the batch is divided.

        Returns:
            The fewest, all of the same size, of which none has more than `micro_batch` examples.

        Raises:
            ClipgenError: The batch cannot be divided among the processes.
        """
        share, rest = divmod(self.batch_size, processes)
        if rest:
            raise ClipgenError(
                f"batch_size {self.batch_size} is not divisible by {processes} processes: change one"
            )
        most = self.micro_batch or share
        return next(n for n in range(1, share + 1) if share % n == 0 and share // n <= most)

    @model_validator(mode="before")
    @classmethod
    def _read_accumulate(cls, values: Any) -> Any:
        """Records of earlier versions hold the number of passes."""
        if isinstance(values, dict) and "accumulate" in values:
            values = dict(values)
            passes = values.pop("accumulate")
            if passes > 1:
                values.setdefault("micro_batch", max(values["batch_size"] // passes, 1))
        return values

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ClipgenError(f"betas {self.betas} are not both from 0 to below 1: change them")
        return self
