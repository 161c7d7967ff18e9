"""How an asset's training is started: in its own process, or in several by torchrun."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import dagster as dg

from clipgen_core.tracking import MlflowTracker


def train_in_processes(
    stage: str,
    processes: int,
    *,
    root: str,
    recipe: str,
    overrides: Mapping[str, Any],
    tracker: MlflowTracker,
    **inputs: str | None,
) -> None:
    """Run `clipgen train STAGE` under torchrun; the caller's own `run()` then finds it finished.

    With one process there is nothing to do: the caller's `run()` trains.
    """
    if processes == 1:
        return
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "clipgen_core.cli", "train", stage, "--root", root, "--recipe", recipe]
    command += [f"--set={name}={json.dumps(value)}" for name, value in overrides.items()]
    command += [f"--{name}={value}" for name, value in inputs.items() if value is not None]
    command += [f"--mlflow-run={tracker.run_id}"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": tracker.client.tracking_uri}
    if subprocess.run(command, env=environment, check=False).returncode:
        raise dg.Failure(f"training the {stage} in {processes} processes failed: its output says why")
