"""A training on Ray's workers, by Ray Train: on the cluster that RAY_ADDRESS names, or on this machine.

Knows Ray; knows nothing of what is trained.
"""

import os
import threading
from typing import Any

import dagster as dg

from clipgen_core import logs, ray_address
from clipgen_core.errors import ClipgenError, Interrupted
from clipgen_core.extras import needed_for
from clipgen_core.train import train
from clipgen_core.training.interrupt import stop_signals, stop_when
from pipelines.config import TrainingConfig

FOLDER = "ray"  # under the root: what Ray's trainer notes of itself
RESIZED = 3600.0  # seconds between looks for more workers: each repeats the steps since the checkpoint


class Exchange:
    """An actor between the process of the step and its workers.

    Attributes:
        stop: Whether a stop was requested.
        error: The error of clipgen's own that ended a worker, which would occur again.
    """

    def __init__(self) -> None:
        self.stop = False
        self.error: ClipgenError | None = None

    def request_stop(self) -> None:
        self.stop = True

    def stop_requested(self) -> bool:
        return self.stop

    def fail(self, error: ClipgenError) -> None:
        self.error = self.error or error

    def failed(self) -> ClipgenError | None:
        return self.error


def train_on_ray(arguments: dict[str, Any], config: TrainingConfig, mlflow: str) -> None:
    """Train on workers. When one is lost, all of them start again from the latest checkpoint.

    Args:
        arguments: Those of `clipgen_core.train.train`, which every worker calls.
        config: How many workers there are, where they run and how often lost ones are replaced.
        mlflow: The tracking URI of MLflow, as workers reach it.

    Raises:
        dg.Failure: The training failed, or workers were lost more often than `restarts`.
        Interrupted: A stop was requested; a checkpoint was saved.
    """
    with needed_for("training on Ray"):
        import ray
        from ray.train import FailureConfig, RunConfig, TrainingFailedError
        from ray.train.torch import TorchConfig, TorchTrainer

    from clipgen_core.training.distributed import TIMEOUT

    environment = {"MLFLOW_TRACKING_URI": mlflow, **logs.for_children()}

    def work() -> None:
        if ray.get(exchange.failed.remote()):
            return  # Ray Train replaces workers after every error, also after one that would occur again
        os.environ.update(environment)
        try:
            with stop_when(lambda: ray.get(exchange.stop_requested.remote())):
                train(**arguments)
        except ClipgenError as error:
            ray.get(exchange.fail.remote(error))
            if not isinstance(error, Interrupted):
                raise

    ray_address.join()
    exchange: Any = ray.remote(num_cpus=0)(Exchange).remote()
    trainer = TorchTrainer(
        work,
        torch_config=TorchConfig(timeout_s=int(TIMEOUT.total_seconds())),
        scaling_config=scaling(config, gpus=int(ray.cluster_resources().get("GPU", 0))),
        run_config=RunConfig(
            storage_path=f"{arguments['root']}/{FOLDER}",
            failure_config=FailureConfig(max_failures=config.restarts),
        ),
    )
    lost = None
    try:
        with stop_signals(exchange.request_stop.remote):
            _fit(trainer)
    except TrainingFailedError as error:
        lost = error
    own = ray.get(exchange.failed.remote())
    if isinstance(own, Interrupted):
        raise own
    if own or lost:
        reason = own or f"workers were lost {config.restarts + 1} times: {lost}"
        raise dg.Failure(f"training the {arguments['stage']} on Ray failed: {reason}") from lost


def scaling(config: TrainingConfig, gpus: int) -> Any:
    """How many workers there are, and what each of them gets.

    Args:
        config: Of the training.
        gpus: How many GPUs the cluster has now.

    Returns:
        Ray Train's ScalingConfig.
    """
    from ray import train as ray_train

    made: Any = ray_train.ScalingConfig  # mypy sees that of Ray Train's first version
    least = config.min_processes or config.processes
    return made(
        num_workers=config.processes if least == config.processes else (least, config.processes),
        use_gpu=gpus > 0 if config.gpu is None else config.gpu,
        accelerator_type=config.accelerator,
        placement_strategy=config.placement,
        elastic_resize_monitor_interval_s=RESIZED,
    )


def _fit(trainer: Any) -> None:
    """Train in another thread. In this one, Ray would end the workers at a Ctrl-C without a checkpoint."""
    import ray

    errors: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=fit, name="Ray Train", daemon=True)
    thread.start()
    try:
        thread.join()
    except BaseException:
        ray.shutdown()  # ends the workers at once
        raise
    if errors:
        raise errors[0]
