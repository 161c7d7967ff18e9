"""Where metrics, tags and pictures of a run go: MLflow, or nowhere.

MlflowTracker writes through MLflow's client to one run, without MLflow's global state;
NullTracker takes everything and keeps nothing, so that callers never ask whether to track.
"""

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from clipgen_core.errors import ClipgenError, first_line

EXPERIMENT = "clip-gen"
LOCAL_FOLDER = ".clipgen/mlflow"
MAX_PARAM_LENGTH = 500


class Tracker(Protocol):
    """What a stage may report while it works."""

    def params(self, values: Mapping[str, Any]) -> None: ...

    def metrics(self, values: Mapping[str, float], step: int) -> None: ...

    def tags(self, values: Mapping[str, str]) -> None: ...

    def image(self, name: str, image: Image.Image) -> None: ...

    def file(self, path: Path) -> None: ...


class NullTracker:
    """Keeps nothing."""

    def params(self, values: Mapping[str, Any]) -> None: ...

    def metrics(self, values: Mapping[str, float], step: int) -> None: ...

    def tags(self, values: Mapping[str, str]) -> None: ...

    def image(self, name: str, image: Image.Image) -> None: ...

    def file(self, path: Path) -> None: ...


class MlflowTracker:
    """One MLflow run."""

    def __init__(self, client: Any, run_id: str) -> None:
        self.client, self.run_id = client, run_id

    def params(self, values: Mapping[str, Any]) -> None:
        for name, value in flatten(values).items():
            self.client.log_param(self.run_id, name, str(value)[:MAX_PARAM_LENGTH])

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        rows = [Metric(name, float(value), now, step) for name, value in values.items()]
        self.client.log_batch(self.run_id, metrics=rows)

    def tags(self, values: Mapping[str, str]) -> None:
        for name, value in values.items():
            self.client.set_tag(self.run_id, name, value)

    def image(self, name: str, image: Image.Image) -> None:
        self.client.log_image(self.run_id, image, f"{name}.png")

    def file(self, path: Path) -> None:
        self.client.log_artifact(self.run_id, str(path))


@contextmanager
def mlflow_run(
    name: str, *, tracking_uri: str, artifacts: str | None, tags: Mapping[str, str]
) -> Iterator[MlflowTracker]:
    """An MLflow run that ends FINISHED, or FAILED when the body raises.

    Meanwhile it is told the machine's load every ten seconds (MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL), as
    `system/...`; of NVIDIA GPUs too where nvidia-ml-py is installed.

    Args:
        tracking_uri: e.g. `sqlite:///mlflow.db` or a server's URL.
        artifacts: where a new experiment keeps its artifacts; the server's default if None.
    """
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    client = mlflow_client(tracking_uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    experiment_id = (
        experiment.experiment_id
        if experiment
        else client.create_experiment(EXPERIMENT, artifact_location=artifacts)
    )
    run_id = client.create_run(experiment_id, run_name=name, tags=dict(tags)).info.run_id
    load: Any = SystemMetricsMonitor(run_id, tracking_uri=tracking_uri)
    load.start()
    ended = "FAILED"
    try:
        yield MlflowTracker(client, run_id)
        ended = "FINISHED"
    finally:
        load.finish()
        client.set_terminated(run_id, ended)


def default_uri(local_folder: str = LOCAL_FOLDER) -> str:
    """MLFLOW_TRACKING_URI where it is set, else a SQLite file in `local_folder`."""
    local = f"sqlite:///{Path(local_folder).resolve()}/mlflow.db"
    return os.environ.get("MLFLOW_TRACKING_URI") or local


def mlflow_client(tracking_uri: str) -> Any:
    from mlflow import MlflowClient

    try:
        if tracking_uri.startswith("sqlite:///"):
            Path(tracking_uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
        client.search_experiments(max_results=1)
    except Exception as error:
        raise ClipgenError(
            f"MLflow at {without_password(tracking_uri)} does not answer "
            f"({without_password(first_line(error))}): start it, or set MLFLOW_TRACKING_URI"
        ) from None
    return client


def without_password(text: str) -> str:
    """The text without the user and password that any URL in it may carry."""
    return re.sub(r"://[^/@\s]+@", "://", text)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
