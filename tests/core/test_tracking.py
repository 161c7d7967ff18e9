import io
from pathlib import Path

import mlflow
import pytest
from PIL import Image

from clipgen_core.errors import ClipgenError
from clipgen_core.generator import TextToImage
from clipgen_core.stages import evaluation, vqgan
from clipgen_core.storage import Storage
from clipgen_core.tracking import flatten, mlflow_client, mlflow_run, without_password
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


@pytest.mark.slow
def test_the_registered_model_gives_png_bytes_and_holds_no_pickle(
    tracking_uri: str,
    tmp_path: Path,
    pictures: Path,
    checkpoint: str,
    pipeline: Storage,
    storage: Storage,
) -> None:
    config = evaluation.Config(shown=("a red disc",), pictures_shown=1, scored=2, candidates=1)
    with run(tracking_uri, tmp_path, "evaluation") as tracker:
        result = evaluation.run(
            config,
            transformer=checkpoint,
            images=pipeline.images,
            prompts=str(pictures / "prompts.csv"),
            out=storage,
            tracker=tracker,
        )
        version = evaluation.register(checkpoint, result, tracker, name="clip-gen", alias="candidate")
    client = mlflow_client(tracking_uri)
    registered = client.get_model_version_by_alias("clip-gen", "candidate")
    assert str(registered.version) == version == "1"
    assert registered.tags["transformer"] == checkpoint
    files = [str(p) for p in (tmp_path / "artifacts").rglob("*")]
    assert not [f for f in files if f.endswith((".pkl", ".pickle", ".pt", ".pyc"))]
    assert [f for f in files if f.endswith("generator/vqgan/model.safetensors")]

    mlflow.set_tracking_uri(tracking_uri)
    loaded = mlflow.pyfunc.load_model("models:/clip-gen@candidate")
    (png,) = loaded.predict(["a red heart"])
    assert Image.open(io.BytesIO(png)).size == (32, 32)
    generator = TextToImage.from_pretrained("models:/clip-gen@candidate")
    same = generator.generate(["a red heart"])[0][0]
    assert same.tobytes() == Image.open(io.BytesIO(png)).convert("RGB").tobytes()
    with pytest.raises(ClipgenError, match="is not to be had from MLflow"):
        TextToImage.from_pretrained("models:/clip-gen@typo")


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
