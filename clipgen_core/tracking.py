"""What a stage may report while it works, and where MLflow is: its address, client and registered models.

NullTracker accepts everything and keeps nothing, so that callers never ask whether to track. Knows nothing of
how a run is written to MLflow.
"""

import os
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from clipgen_core.errors import ClipgenError, MlflowAway, first_line
from clipgen_core.extras import needed_for
from clipgen_core.mlflow_folder import follow

EXPERIMENT = "clip-gen"
LOCAL_FOLDER = ".clipgen/mlflow"
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"  # MLflow's default of 7 takes four minutes, 3 take 12 seconds


class Tracker(Protocol):
    """What a stage may report while it works."""

    def params(self, values: Mapping[str, Any]) -> None: ...

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics.

        Args:
            values: Metrics by name.
            step: The training step; 0 outside of trainings.
        """

    def tags(self, values: Mapping[str, str]) -> None: ...

    def table(self, url: str, version: int | None, digest: str | None = None) -> None:
        """Log a table that the run reads, with its version.

        Args:
            url: The Lance table.
            version: Of the table.
            digest: Of the rows that are used; by default the version stands for it.
        """

    def image(self, name: str, image: Image.Image) -> None:
        """Log an image as a PNG file.

        Args:
            name: The file's name, without its ending.
            image: The image.
        """

    def file(self, path: Path) -> None: ...


class NullTracker:
    """Keeps nothing."""

    def params(self, values: Mapping[str, Any]) -> None: ...

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics.

        Args:
            values: Metrics by name.
            step: The training step; 0 outside of trainings.
        """

    def tags(self, values: Mapping[str, str]) -> None: ...

    def table(self, url: str, version: int | None, digest: str | None = None) -> None:
        """Log a table that the run reads, with its version.

        Args:
            url: The Lance table.
            version: Of the table.
            digest: Of the rows that are used; by default the version stands for it.
        """

    def image(self, name: str, image: Image.Image) -> None:
        """Log an image as a PNG file.

        Args:
            name: The file's name, without its ending.
            image: The image.
        """

    def file(self, path: Path) -> None: ...


def default_uri(local_folder: str = LOCAL_FOLDER) -> str:
    """MLFLOW_TRACKING_URI if it is set, else a SQLite file in `local_folder`."""
    local = f"sqlite:///{Path(local_folder).resolve()}/mlflow.db"
    return os.environ.get("MLFLOW_TRACKING_URI") or local


def require_store(uri: str) -> None:
    """A server needs MLflow's client only, which is always installed.

    Raises:
        ClipgenError: The URI names a database, and MLflow itself is not installed.
    """
    from mlflow.store.db.db_types import DATABASE_ENGINES

    if uri.startswith(tuple(DATABASE_ENGINES)):
        with needed_for(f"MLflow at {without_password(uri)}"):
            version("mlflow")


def mlflow_client(tracking_uri: str) -> Any:
    """A client of an MLflow that answers.

    Raises:
        MlflowAway: It does not.
    """
    require_store(tracking_uri)
    try:
        client = unasked_client(tracking_uri)
        client.search_experiments(max_results=1)
    except Exception as error:
        raise MlflowAway(
            f"MLflow at {without_password(tracking_uri)} does not answer ({why(error)}): start it, or set "
            "MLFLOW_TRACKING_URI"
        ) from None
    return client


def unasked_client(tracking_uri: str) -> Any:
    """A client of an MLflow that may be away at present."""
    from mlflow import MlflowClient

    os.environ.setdefault(RETRIES, "3")
    if tracking_uri.startswith("sqlite:///"):
        Path(tracking_uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    follow(tracking_uri)
    return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


def download_registered(model_uri: str) -> Path:
    """Download a registered model.

    Args:
        model_uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Returns:
        The generator folder in it.

    Raises:
        ClipgenError: MLflow does not have it, or does not answer.
    """
    import mlflow

    if not mlflow.is_tracking_uri_set():
        mlflow.set_tracking_uri(registry_uri())
    require_store(mlflow.get_tracking_uri())
    try:
        follow(mlflow.get_tracking_uri())
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=model_uri))
    except Exception as error:
        where = without_password(mlflow.get_tracking_uri())
        raise ClipgenError(
            f"{model_uri} is not available from MLflow at {where} "
            f"({why(error)}): check the name and MLFLOW_TRACKING_URI"
        ) from None
    return folder / "artifacts" / "generator"


def has_mlflow() -> bool:
    """Whether MLflow is a server, or its local database is there."""
    uri = default_uri()
    return not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).is_file()


def registry_uri() -> str:
    """The address of the model registry.

    Raises:
        ClipgenError: It is a local file that does not exist.
    """
    if not has_mlflow():
        raise ClipgenError(f"there is no MLflow at {default_uri()}: set MLFLOW_TRACKING_URI")
    return default_uri()


def find_version(client: Any, model_uri: str) -> Any:
    """Look a version up in the registry.

    Args:
        client: Of MLflow.
        model_uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Returns:
        MLflow's description of the version.

    Raises:
        ClipgenError: There is none.
    """
    from mlflow.exceptions import MlflowException

    name, by_alias, version = model_uri.removeprefix("models:/").partition("@")
    if not by_alias:
        name, _, version = name.partition("/")
    try:
        find = client.get_model_version_by_alias if by_alias else client.get_model_version
        return find(name, version)
    except MlflowException as error:
        raise ClipgenError(
            f"the registry has no {model_uri} ({why(error)}): check the name; a model is "
            "registered by the asset evaluation_report, and by `clipgen register`"
        ) from None


def describe(model_uri: str) -> dict[str, str]:
    """The tags of a registered version: what it was made from, its scores and checks."""
    found = find_version(mlflow_client(registry_uri()), model_uri)
    return {"version": str(found.version), **found.tags}


def why(error: Exception) -> str:
    """What MLflow says, on one line and without passwords; of a failed connection only its reason."""
    said = without_password(first_line(error))
    if "API request to" not in said and "Max retries exceeded" not in said:
        return said
    if reason := re.search(r"(?:\[Errno -?\d+\] |Error\(\d+, ')([^')\"]+)", said):
        return reason[1].lower()
    return "no answer in time" if "timed out" in said else said


def without_password(text: str) -> str:
    """The text without the user and password that any URL in it may carry."""
    return re.sub(r"://[^/@\s]+@", "://", text)
