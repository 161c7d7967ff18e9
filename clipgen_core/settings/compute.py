"""Where embedding and encoding run."""

from typing import Literal

from pydantic import Field

from clipgen_core.schema import Frozen


class ComputeConfig(Frozen):
    """on: `local`, or `ray` (the cluster that RAY_ADDRESS names, else one on this machine);
    workers, cpus, gpus: how many actors, and what each takes."""

    on: Literal["local", "ray"] = "local"
    workers: int = Field(default=1, gt=0)
    cpus: float = Field(default=1.0, gt=0)
    gpus: float = Field(default=0.0, ge=0)
