"""A run that is terminated saves a checkpoint, and counts as canceled or killed instead of as failed."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from clipgen_core.tracking import mlflow_client
from tests.conftest import wait_for

INSTANCE = Path(__file__).parents[2] / "infra" / "dagster" / "local.yaml"


def clip_training(folder: Path, captions: Path, executor: str) -> subprocess.Popen[bytes]:
    """A training that would take hours: by `dagster job execute`, or multiprocess as `clipgen train` does.

    Args:
        folder: For the run's config, its root and its MLflow.
        captions: What CLIP is trained on.
        executor: `in_process` or `multiprocess`.

    Returns:
        The process.
    """
    run_config = {
        "execution": {"config": {executor: {}}},
        "resources": {
            "storage": {"config": {"root": str(folder / "root")}},
            "recipe": {"config": {"name": "quick"}},
            "mlflow": {"config": {"local_folder": str(folder / "mlflow")}},
        },
        "ops": {
            "clip_checkpoint": {
                "config": {
                    "captions": str(captions),
                    "train": {"steps": 100_000, "log_every": 1, "checkpoint_every": 100_000},
                }
            }
        },
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(run_config))
    program, file = str(Path(sys.executable).parent / "dagster"), folder / "run.yaml"
    words = [program, "job", "execute", "-m", "pipelines.definitions", "-j", "clip_training", "-c", str(file)]
    if executor == "multiprocess":
        called = f"execute('clip_training', Path({str(file)!r}), {str(folder)!r})"
        imports = "from pathlib import Path; from clipgen_core.cli.train import execute"
        words = [sys.executable, "-c", f"{imports}; {called}"]
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = os.environ | {"TQDM_DISABLE": "1"}
    return subprocess.Popen(words, env=environment, **quiet)


@pytest.mark.parametrize(
    ("executor", "number"), [("in_process", signal.SIGINT), ("multiprocess", signal.SIGTERM)]
)
def test_a_terminated_run_saves_a_checkpoint_and_is_canceled(
    executor: str, number: signal.Signals, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "dagster.yaml").write_bytes(INSTANCE.read_bytes())
    client = mlflow_client(f"sqlite:///{tmp_path}/mlflow/mlflow.db")  # creates its tables before the run does
    with dg.DagsterInstance.get() as instance:
        process = clip_training(tmp_path, pictures / "captions.csv", executor)
        try:

            def trains() -> bool:
                experiment = client.get_experiment_by_name("clip-gen")
                runs = client.search_runs([experiment.experiment_id]) if experiment else []
                return any("loss" in run.data.metrics for run in runs)

            wait_for(trains, "a step", alive=lambda: process.poll() is None)
            (run,) = instance.get_runs()
            instance.report_run_canceling(run)  # as the UI's "terminate" does before it sends the signal
            process.send_signal(number)
            process.wait(120)
        finally:
            process.kill()
        (ended,) = instance.get_runs()
        assert ended.status is dg.DagsterRunStatus.CANCELED
        assert not instance.event_log_storage.get_concurrency_info("gpu").claimed_slots
    (logged,) = client.search_runs([client.get_experiment_by_name("clip-gen").experiment_id])
    assert logged.info.status == "KILLED"
    assert list((tmp_path / "root").glob("checkpoints/clip/*/step-*/state.json"))
