"""What a person may set on an asset in the launchpad or a run config."""

from typing import Any

import dagster as dg
from pydantic import Field


class StageConfig(dg.Config):
    """Any field of the stage's own config, by dotted name: {"train.batch_size": 64}."""

    overrides: dict[str, Any] = Field(default={}, description="Dotted names of the stage's config.")

    def all_overrides(self) -> dict[str, Any]:
        return dict(self.overrides)


class TrainingConfig(StageConfig):
    """A training stage."""

    steps: int | None = Field(default=None, description="Optimizer steps; the recipe's if unset.")
    seed: int | None = Field(default=None, description="Seed of the training; the recipe's if unset.")
    processes: int = Field(default=1, ge=1, description="Processes, one a GPU.")
    workers_on: str = Field(
        default="here",
        pattern="^(here|ray)$",
        description="`here`: this machine (torchrun); `ray`: the cluster that RAY_ADDRESS names.",
    )
    restarts: int = Field(default=3, ge=0, description="How often lost workers of Ray are replaced.")

    def all_overrides(self) -> dict[str, Any]:
        given = {"train.steps": self.steps, "train.seed": self.seed}
        return {k: v for k, v in given.items() if v is not None} | dict(self.overrides)
