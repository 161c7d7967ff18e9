"""Where embedding and encoding run."""

from typing import Literal

from pydantic import Field

from clipgen_core.schema import Frozen


class ComputeConfig(Frozen):
    """The process or the Ray actors that work on batches of images."""

    where: Literal["local", "ray"] = "local"
    """`local`: this process. `ray`: the cluster at RAY_ADDRESS, or Ray on this machine if that is not set."""
    workers: int = Field(default=1, gt=0)
    """Ray actors, each of which holds a copy of the model."""
    cpus: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """CPU cores reserved for each Ray actor."""
    gpus: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """GPUs reserved for each Ray actor. A fraction shares a GPU between actors."""
