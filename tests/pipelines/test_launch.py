"""Training assets on a real Ray cluster of two nodes on loopback; a worker is killed in the middle."""

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
import torch

from clipgen_core import ray_address
from clipgen_core.errors import ClipgenError
from clipgen_core.storage import Storage
from clipgen_core.tracking import mlflow_client
from clipgen_core.training.checkpoint import Checkpoint
from pipelines.config import TrainingConfig
from pipelines.definitions import defs
from pipelines.on_ray import scaling
from tests.conftest import RAY, free_port, wait_for

STEPS = 400  # some seconds, in which a signal arrives
MODEL = {"width": 32, "layers": 1, "heads": 2}
TRAIN = {"steps": STEPS, "batch_size": 4, "log_every": 10, "checkpoint_every": 20, "precision": "fp32"}


def materialise(root: str, **training: Any) -> None:
    """transformer_checkpoint by Dagster, in this process; its workers on Ray."""
    torch.set_num_threads(1)
    training = {"processes": 2, "workers_on": "ray", "model": MODEL, "train": TRAIN, **training}
    asked = {
        "resources": {
            "storage": {"config": {"root": root}},
            "mlflow": {"config": {"local_folder": f"{root}/mlflow"}},
        },
        "ops": {"transformer_checkpoint": {"config": training}},
    }
    job = defs().resolve_job_def("clip_gen")
    job.execute_in_process(run_config=asked, asset_selection=[dg.AssetKey("transformer_checkpoint")])


def started(root: Storage, **training: Any) -> Any:
    spawn = multiprocessing.get_context("spawn")
    driver = spawn.Process(target=materialise, args=(root.root,), kwargs=training)
    driver.start()
    return driver


def root_at(path: Path, pipeline: Storage) -> Storage:
    shards, out = pipeline.current("tokens", "tests"), Storage(str(path))
    out.publish_current("tokens", shards.path, shards.digest)
    return out


def checkpoints(out: Storage) -> list[Path]:
    return list(Path(out.root).glob("checkpoints/transformer/*/step-*/state.json"))


def newest_step(out: Storage) -> int:
    return max(int(file.parent.name.removeprefix("step-")) for file in checkpoints(out))


def steps_in_mlflow(out: Storage) -> set[int]:
    """Where the curve has points; without MLflow's client, which would make the tables beside the driver."""
    try:
        with closing(sqlite3.connect(f"file:{out.root}/mlflow/mlflow.db?mode=ro", uri=True)) as database:
            return {step for (step,) in database.execute("SELECT step FROM metrics WHERE key = 'loss'")}
    except sqlite3.OperationalError:
        return set()


def trainer_process() -> int | None:
    """A process of the training's workers."""
    for process in psutil.process_iter(["cmdline"]):
        title = " ".join(process.info["cmdline"] or [])
        if title.startswith("ray::") and "TrainWorker" in title:
            return process.pid
    return None


@pytest.fixture(scope="module")
def undisturbed(pipeline: Storage, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checkpoint of a training by two processes of torchrun that nobody disturbed."""
    out = root_at(tmp_path_factory.mktemp("undisturbed"), pipeline)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        driver = started(out, workers_on="here")
        driver.join(300)
    assert driver.exitcode == 0
    return out.current("transformer", "tests").path


def assert_same(checkpoint: str, undisturbed: str) -> None:
    assert Checkpoint(checkpoint).state.step == Checkpoint(undisturbed).state.step == STEPS
    weights, others = Checkpoint(checkpoint).weights(), Checkpoint(undisturbed).weights()
    assert all(torch.allclose(weights[name], others[name], atol=1e-5) for name in weights)


@pytest.mark.slow
def test_a_lost_worker_is_replaced_and_the_training_ends_as_if_undisturbed(
    ray_cluster: str, undisturbed: str, pipeline: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = root_at(tmp_path, pipeline)
    driver = started(out)
    wait_for(lambda: checkpoints(out), "a checkpoint", alive=driver.is_alive, pause=0.02)
    victim = trainer_process()
    assert victim
    os.kill(victim, signal.SIGKILL)
    assert newest_step(out) < STEPS
    driver.join(300)
    assert driver.exitcode == 0
    assert_same(out.current("transformer", "tests").path, undisturbed)
    client = mlflow_client(f"sqlite:///{out.root}/mlflow/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("clip-gen").experiment_id])
    points = client.get_metric_history(run.info.run_id, "loss")
    assert [point.step for point in points] == list(range(10, STEPS + 1, 10))


@pytest.mark.slow
@pytest.mark.parametrize(("workers_on", "number"), [("here", signal.SIGTERM), ("ray", signal.SIGINT)])
def test_a_signal_reaches_the_workers_which_save_and_another_run_goes_on(
    workers_on: str,
    number: signal.Signals,
    ray_cluster: str,
    undisturbed: str,
    pipeline: Storage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = root_at(tmp_path, pipeline)
    rarely = {"workers_on": workers_on, "train": {**TRAIN, "checkpoint_every": STEPS}}
    driver = started(out, **rarely)
    wait_for(lambda: steps_in_mlflow(out), "a step in MLflow", alive=driver.is_alive, pause=0.02)
    os.kill(driver.pid, number)
    driver.join(300)
    assert driver.exitcode == 1
    stopped = newest_step(out)
    assert 0 < stopped < STEPS and stopped % 10 == 0

    driver = started(out, **rarely)
    driver.join(300)
    assert driver.exitcode == 0
    assert_same(out.current("transformer", "tests").path, undisturbed)
    assert steps_in_mlflow(out) == set(range(10, STEPS + 1, 10))


@pytest.mark.slow
def test_the_container_of_a_step_joins_the_cluster_and_a_code_location_does_not(ray_cluster: str) -> None:
    environment = os.environ | {"PATH": f"{RAY.parent}:{os.environ['PATH']}"}
    entrypoint = str(Path(__file__).parents[2] / "infra" / "docker" / "entrypoint.sh")
    count = "import ray; ray.init(); print(sum(node['Alive'] for node in ray.nodes()))"
    alive = []
    for words in (["dagster", "api", "grpc"], ["dagster", "api", "execute_step"], ["true"]):
        command = [entrypoint, *words, *(["--help"] if len(words) > 1 else [])]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said = subprocess.run(
            [sys.executable, "-c", count], env=environment, capture_output=True, text=True, check=True
        )
        alive.append(int(said.stdout.split()[-1]))
    assert alive == [2, 3, 3]  # the head and the second node; the step's, but not the code location's


@pytest.mark.slow
def test_an_error_of_clipgens_own_ends_the_training_and_is_not_tried_again(
    ray_cluster: str, pipeline: Storage, tmp_path: Path
) -> None:
    out = root_at(tmp_path, pipeline)
    diverging = {**TRAIN, "learning_rate": 1e12, "clip_norm": 1e12, "log_every": 1}
    call = (
        f"from tests.pipelines.test_launch import materialise; materialise({out.root!r}, train={diverging!r})"
    )
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=False)
    said = "training the transformer on Ray failed: the "
    assert done.returncode and said in done.stderr and "lower the learning rate" in done.stderr, done.stderr
    assert "workers were lost" not in done.stderr and "workers were lost" not in done.stdout


def test_a_cluster_that_is_away_is_one_sentence_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    began = time.monotonic()
    with pytest.raises(ClipgenError, match=r"Ray at 127.0.0.1:\d+ does not answer .*: start the cluster"):
        ray_address.join()
    assert time.monotonic() - began < 60


def test_the_config_says_how_many_workers_and_where() -> None:
    fixed = scaling(TrainingConfig(processes=8), gpus=0)
    assert fixed.num_workers == 8 and not fixed.use_gpu and fixed.placement_strategy == "PACK"
    given = TrainingConfig(processes=8, min_processes=4, gpu=True, accelerator="H100", placement="SPREAD")
    elastic = scaling(given, gpus=0)
    assert elastic.num_workers == (4, 8) and elastic.use_gpu
    assert elastic.accelerator_type == "H100" and elastic.placement_strategy == "SPREAD"
    assert scaling(TrainingConfig(processes=2), gpus=1).use_gpu
