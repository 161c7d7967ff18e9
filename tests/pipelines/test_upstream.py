"""Which artefact an asset works on: its own run's, that of the run it re-executes, or the latest one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from clipgen_core import recipes
from clipgen_core.errors import ClipgenError
from clipgen_core.stages import transformer
from clipgen_core.storage import Storage
from clipgen_core.tracking import mlflow_client
from pipelines.upstream import artefact, upstream
from tests.pipelines.test_assets import TINY, config, execute


class Trial(dg.Config):
    root: str
    recorded: str = ""  # the root that token_shards records, if another
    attempts_file: str


@dg.asset
def token_shards(config: Trial) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Leaves an artefact; afterwards the pointer is moved, as another run or an import would."""
    Storage(config.root).publish_current("tokens", "/moved", "m")
    return dg.MaterializeResult(metadata=artefact(Storage(config.recorded or config.root), "/own", "o"))


@dg.asset(deps=[token_shards])
def transformer_checkpoint(context: dg.AssetExecutionContext, config: Trial) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Fails until the file exists."""
    pointer = upstream(context, Storage(config.root), "tokens")
    if not Path(config.attempts_file).exists():
        raise dg.Failure("not this time")
    return dg.MaterializeResult(metadata={"took": pointer.path, "took_digest": pointer.digest})


def training() -> dg.JobDefinition:
    job = dg.define_asset_job("training", selection=[token_shards, transformer_checkpoint])
    definitions = dg.Definitions(
        [token_shards, transformer_checkpoint], jobs=[job], executor=dg.in_process_executor
    )
    return definitions.resolve_job_def("training")


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:
        yield instance


def trial(tmp_path: Path, **values: str) -> dict[str, Any]:
    given = {"root": str(tmp_path / "root"), "attempts_file": str(tmp_path / "may"), **values}
    return {"ops": {name: {"config": given} for name in ("token_shards", "transformer_checkpoint")}}


def took(instance: dg.DagsterInstance) -> tuple[object, object]:
    event = instance.get_latest_materialization_event(dg.AssetKey("transformer_checkpoint"))
    assert event and event.asset_materialization
    metadata = event.asset_materialization.metadata
    return metadata["took"].value, metadata["took_digest"].value


def test_a_run_goes_on_with_what_it_materialised_itself(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    (tmp_path / "may").touch()
    assert training().execute_in_process(trial(tmp_path), instance=instance).success
    assert took(instance) == ("/own", "o")
    alone = [dg.AssetKey("transformer_checkpoint")]
    given = trial(tmp_path)
    del given["ops"]["token_shards"]
    assert training().execute_in_process(given, instance=instance, asset_selection=alone).success
    assert took(instance) == ("/moved", "m")


def test_a_materialisation_under_another_root_is_not_taken(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    (tmp_path / "may").touch()
    given = trial(tmp_path, recorded=str(tmp_path / "other"))
    assert training().execute_in_process(given, instance=instance).success
    assert took(instance) == ("/moved", "m")


def test_a_re_execution_from_failure_takes_what_the_failed_runs_materialised(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    job, given = dg.reconstructable(training), trial(tmp_path)
    with dg.execute_job(job, instance, run_config=given) as result:
        assert not result.success
        failed = result.run_id
    for attempt in range(2):  # the second re-executes the first, which materialised no shards itself
        if attempt:
            (tmp_path / "may").touch()
        again = dg.ReexecutionOptions.from_failure(failed, instance)
        with dg.execute_job(job, instance, run_config=given, reexecution_options=again) as result:
            assert result.success == bool(attempt)
            failed = result.run_id
    assert took(instance) == ("/own", "o")


def test_without_any_it_says_what_to_materialise(tmp_path: Path) -> None:
    with pytest.raises(ClipgenError, match=r"which transformer_checkpoint needs: materialise token_shards"):
        training().execute_in_process(
            {"ops": {"transformer_checkpoint": trial(tmp_path)["ops"]["transformer_checkpoint"]}},
            asset_selection=[dg.AssetKey("transformer_checkpoint")],
        )


@pytest.mark.slow
def test_the_report_is_of_the_transformer_that_its_run_trained(
    pictures: Path, pipeline: Storage, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(recipes.RECIPES, "tiny", TINY)
    out, shards = Storage(str(tmp_path / "root")), pipeline.current("tokens", "tests")
    out.publish_current("tokens", shards.path, shards.digest)
    Path(out.root).joinpath("images.lance").symlink_to(pipeline.images)
    train = transformer.run

    def overtaken(*args: Any, **inputs: Any) -> transformer.Result:
        result = train(*args, **inputs)
        out.publish_current("transformer", checkpoint, "of another run")
        return result

    monkeypatch.setattr(transformer, "run", overtaken)
    selection = [dg.AssetKey("transformer_checkpoint"), dg.AssetKey("evaluation_report")]
    result = execute("clip_gen", config(tmp_path, pictures), asset_selection=selection)
    trained, _ = result.get_asset_materialization_events()
    own = trained.step_materialization_data.materialization.metadata["path"].value
    client = mlflow_client(f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    assert client.get_model_version("clip-gen", "1").tags["transformer"] == own != checkpoint
    assert execute("clip_gen", config(tmp_path, pictures), asset_selection=selection[1:]).success
    assert client.get_model_version("clip-gen", "2").tags["transformer"] == checkpoint
