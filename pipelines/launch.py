"""How an asset's training is started: in its own process, in several by torchrun, or on Ray's workers.

All of them call `clipgen_core.train.train`; the asset's own `run()` then finds the training finished.
SIGTERM and Ctrl-C are forwarded to the workers, which save a checkpoint and stop.
"""

import json
import os
import subprocess
import sys
from contextlib import suppress
from typing import Any

import dagster as dg
import psutil

from clipgen_core import logs
from clipgen_core.errors import Interrupted
from clipgen_core.mlflow_tracker import MlflowTracker
from clipgen_core.storage import Storage
from clipgen_core.training.interrupt import stop_signals
from pipelines.config import TrainingConfig
from pipelines.on_ray import train_on_ray
from pipelines.resources import RecipeResource


def train_in_processes(
    stage: str,
    config: TrainingConfig,
    recipe: RecipeResource,
    out: Storage,
    tracker: MlflowTracker,
    **inputs: str | None,
) -> None:
    """Train a stage in several processes or on Ray. With one process here, the asset's own `run()` trains.

    Args:
        stage: The stage to train.
        config: Its settings, and where it is trained.
        recipe: The recipe that the settings override.
        out: The root of all artefacts, which every process can reach.
        tracker: The MLflow run that the training logs to.
        inputs: Further arguments of `clipgen_core.train.train`; those that are None are left out.

    Raises:
        dg.Failure: The training failed; on Ray, more often than `restarts`.
        Interrupted: A stop was requested; a checkpoint was saved.
    """
    arguments: dict[str, Any] = {"stage": stage, "root": out.root, "recipe": recipe.name}
    arguments |= {name: value for name, value in inputs.items() if value is not None}
    arguments |= {"overrides": config.overrides(), "mlflow_run": tracker.run_id}
    if config.workers_on == "ray":
        train_on_ray(arguments, config, tracker.client.tracking_uri)
    elif config.processes > 1:
        _by_torchrun(arguments, config.processes, tracker.client.tracking_uri)


def _by_torchrun(arguments: dict[str, Any], processes: int, mlflow: str) -> None:
    """Processes on this machine. Overrides become text here, for torchrun's command line.

    Args:
        arguments: Those of `clipgen_core.train.train`.
        processes: How many to start.
        mlflow: The tracking URI of MLflow.
    """
    options = dict(arguments)
    stage, overrides = options.pop("stage"), options.pop("overrides")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "clipgen_core.cli", "train-stage", stage]
    command += [f"--set={name}={json.dumps(value)}" for name, value in overrides.items()]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    environment = os.environ | {"MLFLOW_TRACKING_URI": mlflow} | logs.for_children()
    # in a session of its own a Ctrl-C of the terminal reaches it only through this process
    launcher = subprocess.Popen(command, env=environment, start_new_session=True)
    with launcher, stop_signals(lambda: _stop_workers(launcher.pid)) as request:
        try:
            launcher.wait()
        except BaseException:
            _kill(launcher.pid)
            raise
    if request.signal:
        raise Interrupted(f"training the {stage} was stopped on request: run it again to resume")
    if launcher.returncode:
        raise dg.Failure(f"training the {stage} in {processes} processes failed: see its output")


def _stop_workers(launcher: int) -> None:
    """Request the workers of a torchrun to stop: it would kill them 30 seconds after a request to itself."""
    with suppress(psutil.NoSuchProcess):
        torchrun = psutil.Process(launcher)
        for process in torchrun.children() or [torchrun]:
            process.terminate()


def _kill(launcher: int) -> None:
    """End a torchrun and its workers at once."""
    with suppress(psutil.NoSuchProcess):
        torchrun = psutil.Process(launcher)
        for process in [torchrun, *torchrun.children(recursive=True)]:
            process.kill()
