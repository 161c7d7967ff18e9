"""MLflow is stopped at the end of an evaluation."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from typer.testing import CliRunner

from clipgen_core import mlflow_tracker, recipes
from clipgen_core.cli import app
from clipgen_core.stages import evaluation
from clipgen_core.storage import Storage
from clipgen_core.tracking import RETRIES, mlflow_client
from pipelines import resources
from tests.mlflow_server import Server
from tests.pipelines.test_assets import TINY, config, execute


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    one = Server(tmp_path / "server")
    one.start()
    one.wait()
    yield one
    one.stop()


@pytest.mark.slow
def test_a_registry_that_was_away_gets_the_model_without_another_evaluation(
    server: Server,
    pictures: Path,
    pipeline: Storage,
    checkpoint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, evaluate, evaluated = Storage(str(tmp_path / "root")), evaluation.run, list[str]()
    root.publish_current("transformer", checkpoint, "tests")
    shutil.copytree(pipeline.images, root.images)

    def run(*args: Any, **options: Any) -> evaluation.Result:
        result = evaluate(*args, **options)
        evaluated.append(result.report)
        server.stop()
        threading.Timer(20, server.start).start()
        return result

    monkeypatch.setattr(evaluation, "run", run)
    monkeypatch.setitem(recipes.RECIPES, "tiny", TINY)
    monkeypatch.setattr(mlflow_tracker, "PATIENCE", 1)
    monkeypatch.setattr(resources, "AWAY_PAUSE", 10)
    monkeypatch.setenv(RETRIES, "0")
    asked = config(tmp_path, pictures)
    asked["resources"]["mlflow"] = {"config": {"tracking_uri": server.url}}
    selection = [dg.AssetKey("evaluation_report"), dg.AssetKey("champion")]
    result = execute("clip_gen", asked, asset_selection=selection)

    assert result.success and len(evaluated) == 1
    (check,) = [one for one in result.get_asset_check_evaluations() if one.check_name == "registered"]
    assert not check.passed and check.severity == dg.AssetCheckSeverity.WARN
    said = str(check.description)
    assert said.startswith(f"the report is at {evaluated[0]}, but the model is not registered (connection")
    again = {one.step_key for one in result.all_events if one.event_type_value == "STEP_UP_FOR_RETRY"}
    assert again == {"champion"}
    client = mlflow_client(server.url)
    aliases = client.get_registered_model("clip-gen").aliases
    assert {name: str(version) for name, version in aliases.items()} == {"candidate": "1", "champion": "1"}
    tags = client.get_model_version("clip-gen", "1").tags
    assert tags["check.enough_prompts"] == "passed" and tags["judged_against"] == "none"
    files = [one.path for one in client.list_artifacts(tags["mlflow_run"])]
    assert "report.html" in files and client.get_run(tags["mlflow_run"]).info.run_name == "champion"

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    client.delete_registered_model("clip-gen")
    done = CliRunner().invoke(app, ["register", "--root", root.root])
    assert done.exit_code == 0 and "clip-gen@candidate is version 1" in done.output, done.output
    done = CliRunner().invoke(app, ["register", "--root", root.root, "--name", "other"])
    assert done.exit_code == 2 and "is of the model clip-gen, so other cannot" in done.output.replace(
        "\n", " "
    )
    assert len(evaluated) == 1
