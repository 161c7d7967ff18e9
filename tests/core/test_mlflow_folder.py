"""MLflow's folder, copied or moved."""

import shutil
from pathlib import Path
from typing import Any

import mlflow
import pytest

from clipgen_core.mlflow_tracker import MlflowTracker, mlflow_run
from clipgen_core.tracking import download_registered, mlflow_client


class Model(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    def predict(self, model_input: list[str]) -> list[str]:
        return model_input


def track(folder: Path, file: Path, *, register: bool) -> str:
    """A run with a file, and maybe a registered model; returns the run's id."""
    uri = f"sqlite:///{folder}/mlflow.db"
    with mlflow_run("run", tracking_uri=uri, artifacts=f"file://{folder}/artifacts", tags={}) as tracker:
        tracker.file(file)
        if register:
            mlflow.set_tracking_uri(uri)
            with mlflow.start_run(run_id=tracker.run_id):
                logged = mlflow.pyfunc.log_model(
                    name="generator",
                    python_model=Model(),
                    artifacts={"generator": str(file)},
                    pip_requirements=[],
                )
            mlflow.register_model(logged.model_uri, "clip-gen")
    return tracker.run_id


def downloaded(client: Any, run: str, to: Path) -> str:
    to.mkdir()
    return Path(client.download_artifacts(run, "file.txt", str(to))).read_text()


def test_a_copy_reads_and_writes_its_own_artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file.txt"
    file.write_text("of the original")
    run = track(tmp_path / "it's first", file, register=True)
    shutil.copytree(tmp_path / "it's first", tmp_path / "second")
    mlflow.set_tracking_uri(None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/second/mlflow.db")
    before = sorted((tmp_path / "it's first").rglob("*"))
    another = track(tmp_path / "second", file, register=False)
    assert sorted((tmp_path / "it's first").rglob("*")) == before
    shutil.rmtree(tmp_path / "it's first")
    client = mlflow_client(f"sqlite:///{tmp_path}/second/mlflow.db")
    assert downloaded(client, run, tmp_path / "one") == downloaded(client, another, tmp_path / "other")
    (generator,) = download_registered("models:/clip-gen/1").parent.iterdir()
    assert generator.read_text() == "of the original"
    assert mlflow.pyfunc.load_model("models:/clip-gen/1").predict(["a"]) == ["a"]


def test_artifacts_that_lie_elsewhere_stay_there(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    file.write_text("elsewhere")
    uri, own = f"sqlite:///{tmp_path}/database/mlflow.db", tmp_path / "database" / "artifacts"
    with mlflow_run("run", tracking_uri=uri, artifacts=f"file://{tmp_path}/artifacts", tags={}) as tracker:
        tracker.file(file)
    (own / "of-another-program").mkdir(parents=True)
    with MlflowTracker(mlflow_client(uri), tracker.run_id) as again:
        again.file(file)
    assert list(own.iterdir()) == [own / "of-another-program"]
