"""MLflow is stopped and started again while something is trained."""

import time
from collections.abc import Iterator, Mapping

import pytest
from PIL import Image

from clipgen_core import mlflow_sender, mlflow_tracker
from clipgen_core.mlflow_tracker import MlflowTracker, mlflow_run
from clipgen_core.stages import vqgan
from clipgen_core.storage import Storage
from clipgen_core.tracking import RETRIES, mlflow_client, unasked_client
from tests.conftest import free_port, tiny_vqgan_config
from tests.mlflow_server import Server

STEPS, STOPPED, STARTED = 16, 4, 10


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    one = Server(tmp_path_factory.mktemp("mlflow") / "server")
    one.start()
    one.wait()
    yield one
    one.stop()


@pytest.fixture
def stopping(server: Server, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Stops the server in the middle of a training, and starts it again; when it did so."""
    log, times = MlflowTracker.metrics, list[float]()

    def metrics(tracker: MlflowTracker, values: Mapping[str, float], step: int) -> None:
        if (step, len(times)) in ((STOPPED, 0), (STARTED, 1)):
            (server.start if times else server.stop)()
            times.append(time.time())
        log(tracker, values, step)

    monkeypatch.setattr(MlflowTracker, "metrics", metrics)
    monkeypatch.setattr(mlflow_tracker, "PATIENCE", 120)
    monkeypatch.setenv(RETRIES, "0")  # else MLflow's own retries may outlast the server's start
    return times


@pytest.mark.slow
def test_an_mlflow_that_was_away_has_every_point_afterwards(
    server: Server,
    stopping: list[float],
    pipeline: Storage,
    clip_reference: str,
    storage: Storage,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with mlflow_run("vqgan", tracking_uri=server.url, artifacts=None, tags={}) as tracker:
        trained = vqgan.run(
            tiny_vqgan_config(STEPS, log_every=1, checkpoint_every=8),
            images=pipeline.images,
            clip=clip_reference,
            out=storage,
            tracker=tracker,
        )
    client = mlflow_client(server.url)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED" and run.data.params["config.train.steps"] == str(STEPS)
    points = client.get_metric_history(tracker.run_id, "loss")
    assert [point.step for point in points] == list(range(1, STEPS + 1))
    stopped, started = stopping
    kept = [point.timestamp / 1000 for point in points if STOPPED < point.step < STARTED]
    assert kept == sorted(kept) and stopped <= kept[0] + 0.001 and kept[-1] <= started
    assert [row["loss"] for row in trained.fitted.history if "loss" in row] == [p.value for p in points]
    images = [file.path for file in client.list_artifacts(tracker.run_id)]
    assert images == ["reconstructions-000008.png", "reconstructions-000016.png"]
    said = capfd.readouterr().err
    assert said.count("does not answer") == 1 and "is back" in said and "Retrying" not in said


def test_what_mlflow_refuses_holds_up_nothing(
    server: Server, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_sender, "PAUSE", 0.1)
    with mlflow_run("run", tracking_uri=server.url, artifacts=None, tags={}) as tracker:
        tracker.metrics({"not: a name": 1.0, "x" * 300: 1}, step=0)
        tracker.metrics({"loss": 2.0}, step=1)
    found = mlflow_client(server.url).get_run(tracker.run_id)
    assert found.data.metrics == {"loss": 2.0} and found.info.status == "FINISHED"
    assert capfd.readouterr().err.count("did not take metrics: ") == 1


def test_an_mlflow_that_stays_away_ends_no_run(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_tracker, "PATIENCE", 1)
    monkeypatch.setenv(RETRIES, "0")
    gone = unasked_client(f"http://127.0.0.1:{free_port()}")
    began = time.monotonic()
    with MlflowTracker(gone, "1") as tracker:
        tracker.metrics({"loss": 1.0}, step=1)
        tracker.image("sheet", Image.new("RGB", (4, 4)))
    assert time.monotonic() - began < 5
    said = capfd.readouterr().err
    assert said.count("the run goes on") == 1 and "2 of the run's entries are lost" in said
