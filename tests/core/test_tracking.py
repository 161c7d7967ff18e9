import json
import subprocess
import time
from pathlib import Path

import pytest

from clipgen_core import __version__
from clipgen_core.errors import ClipgenError, Interrupted
from clipgen_core.mlflow_tracker import mlflow_run
from clipgen_core.settings.catalogue import flatten
from clipgen_core.stages import vqgan
from clipgen_core.storage import Storage
from clipgen_core.tracking import mlflow_client, without_password
from tests.conftest import tiny_vqgan_config


@pytest.fixture
def tracking_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    uri = f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


def run(uri: str, tmp_path: Path, name: str = "run"):  # type: ignore[no-untyped-def]
    return mlflow_run(name, tracking_uri=uri, artifacts=f"file://{tmp_path}/artifacts", tags={"a": "b"})


@pytest.mark.slow
def test_a_training_is_one_run_with_parameters_curves_and_pictures(
    tracking_uri: str, tmp_path: Path, pipeline: Storage, clip_reference: str, storage: Storage
) -> None:
    with run(tracking_uri, tmp_path, "vqgan") as tracker:
        vqgan.run(
            tiny_vqgan_config(6, log_every=2),
            images=pipeline.images,
            clip=clip_reference,
            out=storage,
            tracker=tracker,
        )
    client = mlflow_client(tracking_uri)
    found = client.get_run(tracker.run_id)
    assert found.info.status == "FINISHED" and found.data.tags["a"] == "b"
    assert found.data.params["config.train.steps"] == "6"
    assert [m.step for m in client.get_metric_history(tracker.run_id, "loss")] == [2, 4, 6]
    assert [a.path for a in client.list_artifacts(tracker.run_id)] == ["reconstructions-000006.png"]


def test_a_failed_body_fails_the_run(tracking_uri: str, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), run(tracking_uri, tmp_path) as tracker:
        raise ZeroDivisionError
    assert mlflow_client(tracking_uri).get_run(tracker.run_id).info.status == "FAILED"


def test_an_unreachable_server_is_one_sentence_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ClipgenError, match="does not answer") as error:
        mlflow_client("http://user:secret@127.0.0.1:9")
    assert "127.0.0.1:9" in str(error.value) and "secret" not in str(error.value)


def test_flatten_and_without_password() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}
    assert without_password("postgresql://u:p@db/x") == "postgresql://db/x"
    assert without_password("sqlite:///x.db") == "sqlite:///x.db"


def test_a_run_is_told_the_machines_load(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    with run(tracking_uri, tmp_path) as tracker:
        time.sleep(1.5)
    names = mlflow_client(tracking_uri).get_run(tracker.run_id).data.metrics
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= names.keys()


def test_a_training_that_stopped_goes_on_in_its_run(tracking_uri: str, tmp_path: Path) -> None:
    def training(name: str, tag: str):  # type: ignore[no-untyped-def]
        return mlflow_run("vqgan", tracking_uri=tracking_uri, artifacts=None, tags={"a": tag}, training=name)

    with pytest.raises(Interrupted), training("one", "b") as first:
        first.metrics({"loss": 2.0}, step=1)
        raise Interrupted("stopped")
    client = mlflow_client(tracking_uri)
    assert client.get_run(first.run_id).info.status == "KILLED"
    with training("another", "c") as other, training("one", "d") as again:
        assert client.get_run(again.run_id).info.status == "RUNNING"
        again.metrics({"loss": 1.0}, step=2)
    found = client.get_run(first.run_id)
    assert again.run_id == first.run_id != other.run_id
    assert found.info.status == "FINISHED" and found.data.tags["a"] == "d"
    assert [point.step for point in client.get_metric_history(first.run_id, "loss")] == [1, 2]
    with training("one", "e") as anew:
        assert anew.run_id not in (first.run_id, other.run_id)  # it is finished: nothing goes on


def test_steps_since_the_checkpoint_are_logged_once(tracking_uri: str) -> None:
    def training():  # type: ignore[no-untyped-def]
        return mlflow_run("vqgan", tracking_uri=tracking_uri, artifacts=None, tags={}, training="one")

    with pytest.raises(RuntimeError), training() as first:
        first.metrics({"images": 4.0}, step=0)
        for step in (10, 20, 30):
            first.metrics({"loss": 1 / step}, step=step)
        first.metrics({"validation_loss": 0.5}, step=20)
        raise RuntimeError("killed at step 35, with a checkpoint at step 20")
    with training() as again:
        again.metrics({"images": 4.0}, step=0)
        for step in (30, 40):
            again.metrics({"loss": 1 / step}, step=step)
        again.metrics({"validation_loss": 0.4}, step=40)
    client = mlflow_client(tracking_uri)
    steps = {
        name: [point.step for point in client.get_metric_history(first.run_id, name)]
        for name in ("images", "loss", "validation_loss")
    }
    assert steps == {"images": [0], "loss": [10, 20, 30, 40], "validation_loss": [20, 40]}


def test_a_run_names_its_tables_and_the_code(tracking_uri: str, tmp_path: Path) -> None:
    with run(tracking_uri, tmp_path) as tracker:
        for _ in range(2):
            tracker.table("s3://user:secret@bucket/root/images.lance", 7, "abcd")
        tracker.table("/root/embeddings/clip.lance", 3)
    found = mlflow_client(tracking_uri).get_run(tracker.run_id)
    tables = sorted((one.dataset.name, one.dataset.digest) for one in found.inputs.dataset_inputs)
    assert tables == [("clip.lance", "version 3"), ("images.lance", "abcd")]
    sources = [json.loads(one.dataset.source) for one in found.inputs.dataset_inputs]
    assert {"uri": "s3://bucket/root/images.lance", "version": 7} in sources
    assert found.data.tags["clipgen.version"] == __version__
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode == 0:
        assert found.data.tags["mlflow.source.git.commit"] == head.stdout.strip()
