"""Where metrics, tags and pictures of a run go. The only library module that imports mlflow.

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
MODEL_NEEDS = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "vector-quantize-pytorch",
    "pylance",
    "pyarrow",
    "fsspec",
    "pydantic",
    "safetensors",
    "pillow",
    "numpy",
    "rich",
)


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

    Args:
        tracking_uri: e.g. `sqlite:///mlflow.db` or a server's URL.
        artifacts: where a new experiment keeps its artifacts; the server's default if None.
    """
    client = mlflow_client(tracking_uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    experiment_id = (
        experiment.experiment_id
        if experiment
        else client.create_experiment(EXPERIMENT, artifact_location=artifacts)
    )
    run_id = client.create_run(experiment_id, run_name=name, tags=dict(tags)).info.run_id
    try:
        yield MlflowTracker(client, run_id)
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")


def default_uri(local_folder: str = LOCAL_FOLDER) -> str:
    """MLFLOW_TRACKING_URI where it is set, else a SQLite file in `local_folder`."""
    local = f"sqlite:///{Path(local_folder).resolve()}/mlflow.db"
    return os.environ.get("MLFLOW_TRACKING_URI") or local


def download_registered(model_uri: str) -> Path:
    """The generator folder inside a registered model (`models:/NAME@ALIAS` or `models:/NAME/VERSION`)."""
    import mlflow

    if not mlflow.is_tracking_uri_set():
        uri = default_uri()
        if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
            raise ClipgenError(f"there is no MLflow at {uri}: set MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(uri)
    try:
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=model_uri))
    except Exception as error:
        where = without_password(mlflow.get_tracking_uri())
        raise ClipgenError(
            f"{model_uri} is not to be had from MLflow at {where} "
            f"({without_password(first_line(error))}): check the name and MLFLOW_TRACKING_URI"
        ) from None
    return folder / "artifacts" / "generator"


def register_generator(
    generator: Path, tracker: MlflowTracker, *, name: str, alias: str, tags: Mapping[str, str]
) -> str:
    """Log a generator folder as a pyfunc model of the run and give its version an alias.

    Models from code: MLflow stores `registered_model.py` as text and runs it when loading; no
    Python object is pickled.

    Returns:
        The registered version.
    """
    import mlflow

    package = Path(__file__).parent
    mlflow.set_tracking_uri(tracker.client.tracking_uri)
    with mlflow.start_run(run_id=tracker.run_id):
        logged = mlflow.pyfunc.log_model(
            name="generator",
            python_model=str(package / "registered_model.py"),
            artifacts={"generator": str(generator)},
            code_paths=[str(package)],
            pip_requirements=requirements(),
            registered_model_name=name,
        )
    version = str(logged.registered_model_version)
    for key, value in tags.items():
        tracker.client.set_model_version_tag(name, version, key, value)
    tracker.client.set_registered_model_alias(name, alias, version)
    return version


def requirements() -> list[str]:
    """What a registered model needs to run, at the versions of this environment."""
    from importlib.metadata import version

    return [f"{package}=={version(package)}" for package in MODEL_NEEDS]


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
