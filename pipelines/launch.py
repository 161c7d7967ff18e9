"""How an asset's training is started: in its own process, or in several by torchrun."""

import json
import os
import subprocess
import sys

import dagster as dg

from clipgen_core.storage import Storage
from clipgen_core.tracking import MlflowTracker
from pipelines.config import TrainingConfig
from pipelines.resources import RecipeResource


def train_in_processes(
    stage: str,
    config: TrainingConfig,
    recipe: RecipeResource,
    out: Storage,
    tracker: MlflowTracker,
    **inputs: str | None,
) -> None:
    """Run `clipgen train STAGE` under torchrun; the caller's own `run()` then finds it finished.

    With one process there is nothing to do: the caller's `run()` trains.
    """
    processes, overrides = config.processes, config.all_overrides()
    if processes == 1:
        return
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "clipgen_core.cli", "train", stage, "--root", out.root, "--recipe", recipe.name]
    command += [f"--set={name}={json.dumps(value)}" for name, value in overrides.items()]
    command += [f"--{name}={value}" for name, value in inputs.items() if value is not None]
    command += [f"--mlflow-run={tracker.run_id}"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": tracker.client.tracking_uri}
    if subprocess.run(command, env=environment, check=False).returncode:
        raise dg.Failure(f"training the {stage} in {processes} processes failed: its output says why")
