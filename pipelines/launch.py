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
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from clipgen_core import logs
from clipgen_core.errors import ClipgenError, Interrupted
from clipgen_core.extras import needed_for
from clipgen_core.mlflow_tracker import MlflowTracker
from clipgen_core.storage import Storage
from clipgen_core.train import train
from clipgen_core.training.interrupt import stop_signals, stop_when
from pipelines.config import TrainingConfig
from pipelines.resources import RecipeResource

RAY_FOLDER = "ray"  # under the root: what Ray's trainer notes of itself


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
        _by_ray(arguments, config, tracker.client.tracking_uri)
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


def _by_ray(arguments: dict[str, Any], config: TrainingConfig, mlflow: str) -> None:
    """Workers on the cluster that RAY_ADDRESS names, or on this machine.

    When a worker is lost, all of them start again from the latest checkpoint, up to `config.restarts` times.
    An error that clipgen itself raised would occur again, so it is not retried.
    Every worker calls `train` with `arguments`; `mlflow` is the tracking URI as workers reach it.
    """
    with needed_for("training on Ray"):
        import ray
        from ray.train import RunConfig, ScalingConfig, WorkerGroupError
        from ray.train.torch import TorchConfig, TorchTrainer

    from clipgen_core.training.distributed import TIMEOUT

    environment = {"MLFLOW_TRACKING_URI": mlflow, **logs.for_children()}

    def work() -> None:
        os.environ.update(environment)
        with stop_when(lambda: ray.get(stop.is_requested.remote())):
            train(**arguments)

    def lost(error: BaseException) -> bool:
        return isinstance(error, WorkerGroupError) and own_error(error) is None

    if not ray.is_initialized():
        ray.init()
    stop: Any = ray.remote(num_cpus=0)(Stop).remote()
    gpu = bool(ray.cluster_resources().get("GPU")) if config.gpu is None else config.gpu
    scaling = ScalingConfig(num_workers=config.processes, use_gpu=gpu)
    group, notes = TorchConfig(timeout_s=int(TIMEOUT.total_seconds())), f"{arguments['root']}/{RAY_FOLDER}"
    trying = Retrying(
        retry=retry_if_exception(lost),
        stop=stop_after_attempt(1 + config.restarts),
        before_sleep=_tell,
        reraise=True,
    )
    try:
        for attempt in trying:
            with attempt, stop_signals(stop.request.remote):
                run_config = RunConfig(storage_path=notes)
                TorchTrainer(work, torch_config=group, scaling_config=scaling, run_config=run_config).fit()
    except WorkerGroupError as error:
        raise _ended(error, arguments["stage"], config.restarts) from error


def _ended(error: Any, stage: str, restarts: int) -> Exception:
    """What the end of all workers means: a stop on request or a failure.

    Args:
        error: Ray's `WorkerGroupError`.
        stage: What was trained.
        restarts: How often lost workers were replaced before.

    Returns:
        The error to raise.
    """
    own = own_error(error)
    if isinstance(own, Interrupted):
        return own
    reason = own or f"workers were lost {restarts + 1} times: {error}"
    return dg.Failure(f"training the {stage} on Ray failed: {reason}")


class Stop:
    """An actor that tells the workers whether a stop was requested."""

    def __init__(self) -> None:
        self.requested = False

    def request(self) -> None:
        self.requested = True

    def is_requested(self) -> bool:
        return self.requested


def own_error(error: Any) -> ClipgenError | None:
    """The ClipgenError that ended a worker, if one did."""
    failures = [getattr(failure, "_base_exc", failure) for failure in error.worker_failures.values()]
    return next((one for one in failures if isinstance(one, ClipgenError)), None)


def _tell(state: RetryCallState) -> None:
    logs.line("a worker was lost: all start again", attempt=state.attempt_number)
