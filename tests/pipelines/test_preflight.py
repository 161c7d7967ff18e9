"""The first step of a run checks what all of its steps need; what the library knows of the pipeline is so."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from clipgen_core.assets import ASSETS, JOBS, OWN, WITHOUT_STAGE
from clipgen_core.recipes import named
from clipgen_core.run_config import read_run
from clipgen_core.storage import Storage
from pipelines.definitions import defs
from tests.pipelines.test_assets import config, execute, tiny  # noqa: F401  # tiny is a fixture


def fields(job: str, asset: str) -> set[str]:
    """The names that Dagster takes in the config of an asset."""
    ops: Any = defs().resolve_job_def(job).run_config_schema.config_type
    return set(ops.fields["ops"].config_type.fields[asset].config_type.fields["config"].config_type.fields)


@pytest.mark.parametrize("asset", ASSETS)
def test_the_library_knows_what_the_config_of_each_asset_takes(asset: str) -> None:
    job = next(name for name in ("clip_gen", "clip_training", "new_images") if asset in JOBS[name])
    settings = set(type(getattr(named("demo"), ASSETS[asset].stage)).model_fields)
    assert settings | set(ASSETS[asset].own) == fields(job, asset)
    assert set(ASSETS[asset].own) <= OWN.keys()


def test_the_library_knows_all_jobs_and_the_config_of_the_upkeep() -> None:
    jobs = {job.name for job in defs().resolve_all_job_defs()}
    assert {name for name in jobs if not name.startswith("__")} == set(JOBS)
    assert fields("upkeep", "table_upkeep") == set(WITHOUT_STAGE["table_upkeep"])


@pytest.mark.parametrize("job", JOBS)
def test_the_library_knows_the_assets_of_each_job(job: str) -> None:
    selected = defs().resolve_job_def(job).asset_layer.selected_asset_keys
    assert {key.to_user_string() for key in selected} == set(JOBS[job])


def test_the_library_knows_the_resources_and_their_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPGEN_ROOT", "/some/root")
    monkeypatch.setenv("CLIPGEN_RECIPE", "b")
    resources: dict[str, Any] = dict(defs().resources or {})
    known = read_run({}, JOBS["clip_gen"]).resources
    assert {name: one.model_dump() for name, one in resources.items() if name in known} == known


def failure(result: dg.ExecuteInProcessResult) -> tuple[str, Any]:
    (event,) = [one for one in result.all_events if one.is_step_failure]
    return event.step_key or "", event.step_failure_data.user_failure_data


def test_a_job_fails_in_its_first_step_with_all_problems(pictures: Path, tmp_path: Path) -> None:
    given = config(tmp_path, pictures, clip="local-dir:/no/clip", vqgan_checkpoint={"train": {"seed": -1}})
    given["ops"]["evaluation_report"]["config"]["prompts"] = "/no/prompts.csv"
    step, failed = failure(execute("clip_gen", given, raise_on_error=False))
    assert step == "raw_images"
    assert failed.description.startswith("3 problems before the first stage: vqgan_checkpoint: the setting")
    assert set(failed.metadata) == {"settings", "prompts", "CLIP"}
    assert not Path(Storage(str(tmp_path / "root")).images).exists()


def test_a_step_alone_needs_only_what_it_needs_itself(pictures: Path, tmp_path: Path) -> None:
    given = config(tmp_path, pictures)
    given["ops"] = {}
    result = execute("clip_gen", given, asset_selection=[dg.AssetKey("raw_images")])
    assert result.success  # without prompts, and without a CLIP
    again = execute("clip_gen", given, op_selection=["raw_images"])  # as `-o` of `dagster job execute`
    assert again.success


def test_a_clip_training_is_checked_too(pictures: Path, tmp_path: Path) -> None:
    given = config(tmp_path, pictures, clip_checkpoint={"captions": "/no/captions.csv"})
    del given["ops"]["evaluation_report"]
    step, failed = failure(execute("clip_training", given, raise_on_error=False))
    assert step == "clip_checkpoint" and "/no/captions.csv does not exist" in failed.description
