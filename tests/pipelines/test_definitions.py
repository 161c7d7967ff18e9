"""The public interface of the pipeline: names, graph, and what every asset says of itself."""

import datetime
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.freshness import TimeWindowFreshnessPolicy

from pipelines.definitions import defs

ASSETS = {
    "source_images": set[str](),
    "raw_images": {"source_images"},
    "folder_images": {"source_images"},
    "folder_embeddings": {"folder_images", "clip_checkpoint"},
    "clip_checkpoint": set[str](),
    "clip_embeddings": {"raw_images", "clip_checkpoint"},
    "vqgan_checkpoint": {"raw_images", "clip_embeddings"},
    "near_duplicates": {"clip_embeddings"},
    "token_shards": {"raw_images", "clip_embeddings", "near_duplicates", "vqgan_checkpoint"},
    "transformer_checkpoint": {"token_shards"},
    "evaluation_report": {"raw_images", "transformer_checkpoint"},
    "champion": {"evaluation_report"},
    "table_upkeep": {"raw_images", "clip_embeddings"},
}


APART = {"clip_checkpoint", "table_upkeep", "source_images", "folder_images", "folder_embeddings"}


@pytest.fixture(scope="module")
def loaded() -> dg.Definitions:
    return defs()


def test_assets_and_their_graph(loaded: dg.Definitions) -> None:
    specs = {spec.key.to_user_string(): spec for spec in loaded.resolve_all_asset_specs()}
    graph = {name: {dep.asset_key.to_user_string() for dep in spec.deps} for name, spec in specs.items()}
    assert graph == ASSETS
    for spec in specs.values():
        assert spec.description and spec.kinds and spec.group_name != "default"
        if spec.key.to_user_string() != "source_images":  # which Dagster observes, and no one of us makes
            assert spec.owners and spec.code_version


def test_what_a_schedule_renews_says_how_old_it_may_get(loaded: dg.Definitions) -> None:
    specs = {spec.key: spec for spec in loaded.resolve_all_asset_specs()}
    for schedule in loaded.schedules or ():
        job = loaded.resolve_job_def(schedule.job_name)
        for key in job.asset_layer.selected_asset_keys:
            if key.to_user_string() != "source_images":  # observed, and Dagster counts materialisations only
                policy = specs[key].freshness_policy
                assert isinstance(policy, TimeWindowFreshnessPolicy), key
                assert policy.fail_window.to_timedelta() == datetime.timedelta(days=15)


def test_the_workspace_loads_as_dagster_dev_loads_it(tmp_path: Path) -> None:
    repository = Path(__file__).parents[2]
    environment = os.environ | {"DAGSTER_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "dagster", "definitions", "validate", "-w", "workspace.yaml"]
    done = subprocess.run(
        command, cwd=repository, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Validation successful for code location clipgen" in done.stdout + done.stderr


def test_jobs(loaded: dg.Definitions) -> None:
    graph = loaded.resolve_job_def("clip_gen").asset_layer.executable_asset_keys
    assert {key.to_user_string() for key in graph} == set(ASSETS) - APART
    graph = loaded.resolve_job_def("clip_training").asset_layer.executable_asset_keys
    assert {key.to_user_string() for key in graph} == {"clip_checkpoint"}
