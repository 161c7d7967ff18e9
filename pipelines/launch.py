"""How an asset's training is started: in its own process, in several by torchrun, or on Ray's workers.

Whatever starts it calls `clipgen_core.train.train`; the asset's own `run()` then finds the training finished.
SIGTERM is handed on to the workers, which save and stop.
"""

import json
import os
import subprocess
import sys
from typing import Any

import dagster as dg
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from clipgen_core import logs
from clipgen_core.errors import ClipgenError
from clipgen_core.storage import Storage
from clipgen_core.tracking import MlflowTracker
from clipgen_core.train import train
from clipgen_core.training.interrupt import sigterm, stop_when
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
    """Train `stage` as `config` says. With one process here the caller's `run()` trains: nothing to do.

    Raises:
        dg.Failure: the training failed; on Ray, again and again.
    """
    given = [f"{name}={json.dumps(value)}" for name, value in config.all_overrides().items()]
    arguments: dict[str, Any] = {"stage": stage, "root": out.root, "recipe": recipe.name, "given": given}
    arguments |= {name: value for name, value in inputs.items() if value is not None}
    arguments["mlflow_run"] = tracker.run_id
    if config.workers_on == "ray":
        _by_ray(arguments, config, tracker.client.tracking_uri)
    elif config.processes > 1:
        _by_torchrun(arguments, config.processes, tracker.client.tracking_uri)


def _by_torchrun(arguments: dict[str, Any], processes: int, mlflow: str) -> None:
    options = dict(arguments)
    stage, given = options.pop("stage"), options.pop("given")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "clipgen_core.cli", "train", stage, *(f"--set={one}" for one in given)]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    environment = os.environ | {"MLFLOW_TRACKING_URI": mlflow} | logs.for_children()
    with subprocess.Popen(command, env=environment) as process, sigterm(process.terminate) as request:
        process.wait()
    if request.signalled:
        raise dg.Failure(f"training the {stage} was asked to stop: run it again to go on where it saved")
    if process.returncode:
        raise dg.Failure(f"training the {stage} in {processes} processes failed: its output says why")


def _by_ray(arguments: dict[str, Any], config: TrainingConfig, mlflow: str) -> None:
    """Workers on the cluster that RAY_ADDRESS names. When one is lost, all start again from the newest
    checkpoint; an error that would come again is not tried again."""
    try:
        import ray
        from ray.train import RunConfig, ScalingConfig, WorkerGroupError
        from ray.train.torch import TorchTrainer
    except ImportError as error:
        raise dg.Failure("training on Ray needs Ray: install clipgen with the extra [ray]") from error

    environment = {"MLFLOW_TRACKING_URI": mlflow, **logs.for_children()}

    def work() -> None:
        os.environ.update(environment)
        with stop_when(lambda: ray.get(stop.is_asked.remote())):
            train(**arguments)

    def lost(error: BaseException) -> bool:
        return isinstance(error, WorkerGroupError) and own_reason(error) is None

    if not ray.is_initialized():
        ray.init()
    stop: Any = ray.remote(num_cpus=0)(Stop).remote()
    scaling = ScalingConfig(num_workers=config.processes, use_gpu=bool(ray.cluster_resources().get("GPU")))
    notes = f"{arguments['root']}/{RAY_FOLDER}"
    trying = Retrying(
        retry=retry_if_exception(lost),
        stop=stop_after_attempt(1 + config.restarts),
        before_sleep=_tell,
        reraise=True,
    )
    try:
        for attempt in trying:
            with attempt, sigterm(stop.ask.remote):
                TorchTrainer(work, scaling_config=scaling, run_config=RunConfig(storage_path=notes)).fit()
    except WorkerGroupError as error:
        reason = own_reason(error) or f"workers were lost {config.restarts + 1} times: {error}"
        raise dg.Failure(f"training the {arguments['stage']} on Ray failed: {reason}") from error


class Stop:
    """An actor that workers ask whether to stop."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self) -> None:
        self.asked = True

    def is_asked(self) -> bool:
        return self.asked


def own_reason(error: Any) -> str | None:
    """What clipgen itself has to say, where that ended a worker."""
    failures = [getattr(failure, "_base_exc", failure) for failure in error.worker_failures.values()]
    return next((str(one) for one in failures if isinstance(one, ClipgenError)), None)


def _tell(state: RetryCallState) -> None:
    logs.line("a worker was lost: all start again", attempt=state.attempt_number)
