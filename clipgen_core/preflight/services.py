"""Checks of the servers that a run needs: MLflow, its registry, and Ray."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from clipgen_core import ray_address
from clipgen_core.errors import ClipgenError
from clipgen_core.extras import needed_for
from clipgen_core.preflight.doubt import Doubt
from clipgen_core.preflight.machine import existing
from clipgen_core.registry.champions import Registry
from clipgen_core.run_config import Run
from clipgen_core.storage import SAFE_PART, Storage
from clipgen_core.tracking import EXPERIMENT, mlflow_client, require_store, why, without_password

FILE = "sqlite:///"
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
REGISTERING = frozenset({"evaluation_report", "champion"})
CHECKED = "clipgen.checked"  # a tag of the experiment: writing it is the test


def mlflow(run: Run) -> str:
    """Whether MLflow answers and can be written to, and has a registry where the run needs one."""
    uri, shown = run.mlflow_uri, without_password(run.mlflow_uri)
    require_store(uri)
    if uri.startswith(FILE):
        file = Path(uri.removeprefix(FILE))
        folder = existing(str(file.parent), "resources.mlflow.config.local_folder")
        with _cannot_be_written(shown), tempfile.NamedTemporaryFile(dir=folder):
            if file.exists() and not os.access(file, os.W_OK):
                raise PermissionError(f"{file} is read-only")
        return shown
    with little_patience():
        client = mlflow_client(uri)
        with _cannot_be_written(shown):
            experiment = client.get_experiment_by_name(EXPERIMENT)
            number = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
            client.set_experiment_tag(number, CHECKED, datetime.now(UTC).isoformat(timespec="seconds"))
        if run.assets & REGISTERING:
            _require_registry(client, shown)
    return shown


def _require_registry(client: Any, shown: str) -> None:
    try:
        client.search_registered_models(max_results=1)
    except Exception as error:
        raise ClipgenError(
            f"MLflow at {shown} has no model registry that answers ({why(error)}): start an MLflow server "
            "that has one"
        ) from None


def model(run: Run) -> str:
    """Whether the registered model can have its name, no other root uses it, and MLflow has its champion."""
    name = str(run.resources["mlflow"]["model"])
    if not SAFE_PART.fullmatch(name) or name in (".", ".."):
        raise ClipgenError(
            f"{name!r} cannot be the name of a registered model: set resources.mlflow.config.model to "
            "letters, digits and any of . _ - + = @ ,"
        )
    registry = _registry(run, name)
    if registry:
        registry.require_own()
    if "evaluation_report" in run.assets:
        with suppress(OSError, ValueError):  # a root that cannot be read is said by its own check
            if registry:
                registry.require_champion()
            elif _is_missing(run.mlflow_uri):
                Registry(None, Storage(run.root), name).require_no_champion()
    return name


def _is_missing(uri: str) -> bool:
    return uri.startswith(FILE) and not Path(uri.removeprefix(FILE)).exists()


def _registry(run: Run, name: str) -> Registry | None:
    """The run's registry; None where it is not there yet, or does not answer, which MLflow's check says."""
    uri = run.mlflow_uri
    if _is_missing(uri):
        return None
    with little_patience(), suppress(Exception):
        registry = Registry.at(uri, Storage(run.root), name)
        registry.client.search_registered_models(max_results=1)
        return registry
    return None


@contextmanager
def little_patience() -> Iterator[None]:
    """MLflow's client tries for minutes; a check does not, unless the environment says so."""
    added = {name: value for name, value in PATIENCE.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextmanager
def _cannot_be_written(shown: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ClipgenError(
            f"MLflow at {shown} cannot be written to ({why(error)}): check the permissions"
        ) from None


def ray(run: Run) -> str:
    """Whether Ray is installed and its cluster answers, where an asset works on it."""
    assets = run.on_ray()
    if not assets:
        return ""
    if find_spec("ray") is None:
        with needed_for(f"{assets[0]} on Ray"):
            raise ModuleNotFoundError(name="ray")
    address = ray_address.address()
    if not address:
        raise Doubt(f"RAY_ADDRESS names no cluster: {', '.join(assets)} would use Ray on this machine")
    ray_address.require_answer(address)
    return address
