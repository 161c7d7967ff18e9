"""Which models a server has in memory, and which version of the registry's."""

from pathlib import Path

import pytest

from clipgen_core.errors import ClipgenError
from clipgen_core.generation.parts import copy_parts, read_parts
from clipgen_core.serving import models as module
from clipgen_core.serving.models import LOADED_MODELS, Models, available_models, names_of
from clipgen_core.storage import Storage
from clipgen_core.tracking import mlflow_client


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["models:/clip-gen@champion", "/a/public"], ["models:/clip-gen@champion", "public"]),
        (["/a/x/step-6", "/a/y/step-6", "/b/step-9"], ["x/step-6", "y/step-6", "b/step-9"]),
        (["public/", "s3://b/public"], ["public", "b/public"]),
        (["root/checkpoints/transformer/1a/step-4", "public/"], ["1a/step-4", "public"]),
    ],
)
def test_names_are_as_short_as_tells_the_models_apart(sources: list[str], names: list[str]) -> None:
    assert names_of(sources) == names


def test_the_models_of_a_root_come_before_the_champion_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """After the demo, someone trains on photographs: the page of that root shows their model first."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = mlflow_client(uri)
    for name in ("clip-gen", "photos"):
        client.create_registered_model(name)
        client.create_model_version(name, "file:///nothing")
        client.set_registered_model_alias(name, "champion", "1")
    out = Storage(str(tmp_path / "photos"))
    out.publish_current("transformer", out.path("checkpoints", "transformer", "1"), "digest")
    newest = out.current("transformer", "the test").path
    assert available_models(out.root) == [newest, "models:/clip-gen@champion"]
    Path(out.champions("photos")).mkdir(parents=True)
    assert available_models(out.root) == ["models:/photos@champion", newest, "models:/clip-gen@champion"]
    assert available_models(str(tmp_path / "empty")) == ["models:/clip-gen@champion"]
    assert "has a champion, but" not in capfd.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/elsewhere/mlflow.db")
    assert available_models(out.root) == [newest]
    assert "photos has a champion, but not in the MLflow at sqlite:" in capfd.readouterr().err


def test_the_models_used_last_stay_in_memory(checkpoint: str, any_order: str, tmp_path: Path) -> None:
    copy_parts(read_parts(checkpoint), tmp_path / "third")
    models = Models([checkpoint, any_order, str(tmp_path / "third")])
    first, second, third = models.served.values()
    assert LOADED_MODELS == 2
    kept = models.load(first), models.load(second)
    assert models.load(first) is kept[0] and models.load(second) is kept[1]
    models.load(third)
    assert models.load(second) is kept[1]
    assert models.load(first) is not kept[0]
    with pytest.raises(ClipgenError, match="there is no model 'x': choose"):
        models.find("x")


def test_after_a_promotion_the_new_champion_is_served(
    checkpoint: str,
    any_order: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = mlflow_client(uri)
    client.create_registered_model("clip-gen")
    for number, trained in enumerate((checkpoint, any_order)):
        folder = tmp_path / str(number)
        copy_parts(read_parts(trained), folder / "artifacts" / "generator")
        client.create_model_version("clip-gen", f"file://{folder}")
    client.set_registered_model_alias("clip-gen", "champion", "1")
    models = Models(["models:/clip-gen@champion"])
    served = models.find(None)
    assert served.name == "models:/clip-gen@champion"
    client.set_registered_model_alias("clip-gen", "champion", "2")
    assert models.load(served).parts.order == "raster"  # it was looked up a moment ago
    monkeypatch.setattr(module, "LOOKED_UP", 0.0)
    assert models.load(served).parts.order == "any"
    assert models.origin(served) == "models:/clip-gen/2"
    assert models.find("models:/clip-gen/2") == served  # as its images name it
    with pytest.raises(ClipgenError, match="there is no model 'models:/clip-gen/1'"):
        models.find("models:/clip-gen/1")
    client.delete_registered_model_alias("clip-gen", "champion")
    assert models.load(served).parts.order == "any"
    assert "models:/clip-gen@champion stays models:/clip-gen/2" in capfd.readouterr().err
