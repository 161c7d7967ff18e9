"""The quick demo on real servers, driven as people drive it: by Dagster's GraphQL, its sensor and schedule.

Its recipe, captions and prompts, and a part of its pictures. In the middle of a run the daemon is killed and
the code location reloaded; nothing may be lost.
"""

import json
import logging
import secrets
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import s3fs
from playwright.sync_api import Browser

from clipgen_core.data.tables import column
from clipgen_core.storage import Storage
from clipgen_core.tracking import mlflow_client
from tests.browser.conftest import browser, watch
from tests.conftest import EMOJI, needs_emoji, wait_for
from tests.integration.graphql import launch, status
from tests.integration.servers import (
    LOCATION,
    Platform,
    postgres,
    postgres_binaries,
    s3,
)

__all__ = ["browser"]
KNOWN = [*EMOJI.glob("pictures/google/*-1f4[0-5]?.png"), *EMOJI.glob("pictures/twitter/*-1f4[0-5]?.png")]
NEW = list(EMOJI.glob("pictures/google/*-1f98*.png"))  # the folder that comes later
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(postgres_binaries() is None, reason="needs PostgreSQL: apt-get install postgresql"),
    needs_emoji,
]
ASSETS = {
    "raw_images",
    "clip_embeddings",
    "near_duplicates",
    "vqgan_checkpoint",
    "token_shards",
    "transformer_checkpoint",
    "evaluation_report",
    "champion",
}
PASSWORD = secrets.token_hex(16)
S3_SECRET = secrets.token_hex(16)
STORE = {
    "AWS_ACCESS_KEY_ID": "someone",
    "AWS_SECRET_ACCESS_KEY": S3_SECRET,
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    folder = tmp_path_factory.mktemp("platform")
    with pytest.MonkeyPatch.context() as patch, s3() as (host, port), postgres(PASSWORD) as postgres_port:
        settings = STORE | {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "MLFLOW_S3_ENDPOINT_URL": f"http://{host}:{port}",
            "CLIPGEN_ROOT": "s3://clipgen/root",
            "CLIPGEN_SOURCE": "s3://clipgen/pictures",
            "CLIPGEN_RECIPE": "quick",
            "CLIPGEN_EXECUTOR": "in-process",
            "CLIPGEN_PROMPTS": str(EMOJI / "prompts.csv"),
            "CLIPGEN_OBSERVE": "* * * * *",
        }
        for name, value in settings.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        files = s3fs.S3FileSystem()
        files.mkdir("clipgen")
        upload(files, KNOWN, "known")
        made = Platform(folder, postgres_port, PASSWORD, settings)
        try:
            made.start_all()
            yield made
        finally:
            made.stop()
            s3fs.S3FileSystem.clear_instance_cache()


def upload(files: s3fs.S3FileSystem, pictures: list[Path], folder: str) -> None:
    there = [f"clipgen/pictures/{folder}/{one.parent.name}/{one.name}" for one in pictures]
    files.put([str(one) for one in pictures], there)


RUNS = "query { runsOrError { ... on Runs { results { runId status jobName tags { key value } } } } }"
RELOAD = """mutation($name: String!) { reloadRepositoryLocation(repositoryLocationName: $name)
  { __typename ... on WorkspaceLocationEntry { loadStatus } } }"""
SELECTOR = '{repositoryLocationName: "clipgen", repositoryName: "__repository__", %s}'
SENSOR = f"""mutation {{ startSensor(sensorSelector: {SELECTOR % 'sensorName: "new_folders"'})
  {{ __typename ... on PythonError {{ message }} }} }}"""
SCHEDULE = f"""mutation {{ startSchedule(scheduleSelector: {SELECTOR % 'scheduleName: "source_observation"'})
  {{ __typename ... on PythonError {{ message }} }} }}"""
TICKS = f"""query {{ instigationStateOrError(instigationSelector: {SELECTOR % 'name: "source_observation"'})
  {{ ... on InstigationState {{ ticks {{ status skipReason }} }} }} }}"""
ASSET = """query($asset: String!) { assetOrError(assetKey: {path: [$asset]}) { ... on Asset {
  assetMaterializations { runId metadataEntries { label ... on UrlMetadataEntry { url } } } } } }"""


def finish(platform: Platform, run: str) -> None:
    ended = wait_for(
        lambda: (now := status(platform.webserver, run)) in ("SUCCESS", "FAILURE", "CANCELED") and now,
        f"the end of run {run}",
        seconds=600,
    )
    assert ended == "SUCCESS", (platform.folder / "code.log").read_text()[-5000:]


def materialisations(platform: Platform, asset: str) -> list[Any]:
    made: list[Any] = platform.ask(ASSET, asset=asset)["assetOrError"]["assetMaterializations"]
    return made


def test_a_run_survives_the_daemons_death_and_everything_arrives(
    platform: Platform, browser: Browser, tmp_path: Path
) -> None:
    captions = {"captions": str(EMOJI / "captions.csv")}
    clip = {"ops": {"clip_checkpoint": {"config": captions}}}
    finish(platform, launch(platform.webserver, "clip_training", clip))

    run = launch(platform.webserver, "clip_gen", {})
    wait_for(lambda: materialisations(platform, "clip_embeddings"), "the embeddings")
    assert status(platform.webserver, run) == "STARTED"
    platform.kill("daemon")
    reloaded = platform.ask(RELOAD, name=LOCATION)["reloadRepositoryLocation"]
    assert reloaded == {"__typename": "WorkspaceLocationEntry", "loadStatus": "LOADED"}
    platform.start("daemon")
    finish(platform, run)
    for asset in ASSETS:
        runs = [one["runId"] for one in materialisations(platform, asset)]
        assert runs.count(run) == 1, asset

    upload(s3fs.S3FileSystem(), NEW, "new")
    assert platform.ask(SENSOR)["startSensor"]["__typename"] == "Sensor"
    assert platform.ask(SCHEDULE)["startSchedule"]["__typename"] == "ScheduleStateResult"
    assert_folder_arrived(platform)
    assert_it_is_in_mlflow(platform, browser)
    assert_the_graph_is_shown(platform, browser, tmp_path)
    assert_logs_are_json_with_ids_and_without_secrets(platform, run)


def assert_folder_arrived(platform: Platform) -> None:
    """The sensor asked for a run of the new folder, the schedule ticked, no picture is missing or double."""

    def asked_by_sensor() -> list[Any]:
        runs = platform.ask(RUNS)["runsOrError"]["results"]
        wanted = {"key": "dagster/partition", "value": "new"}
        return [one for one in runs if one["jobName"] == "new_images" and wanted in one["tags"]]

    for one in wait_for(asked_by_sensor, "the sensor's run", seconds=360):
        finish(platform, one["runId"])

    def ticked() -> set[str]:
        ticks = platform.ask(TICKS)["instigationStateOrError"]["ticks"]
        return {tick["status"] for tick in ticks} - {"STARTED"}

    assert wait_for(ticked, "the schedule's tick") <= {"SUCCESS", "SKIPPED"}
    out = Storage("s3://clipgen/root")
    taken = column(out.images, "id")
    assert sorted(taken) == sorted({sha256(one.read_bytes()).hexdigest() for one in (*KNOWN, *NEW)})
    embedded = column(out.current("embeddings", "tests").path, "id")
    assert sorted(embedded) == sorted(taken)


def assert_it_is_in_mlflow(platform: Platform, browser: Browser) -> None:
    """Every run ended, the model is registered, and the link in Dagster leads to the report."""
    client = mlflow_client(platform.mlflow)
    runs = client.search_runs([client.get_experiment_by_name("clip-gen").experiment_id])
    assert runs and {one.info.status for one in runs} == {"FINISHED"}
    assert client.get_model_version_by_alias("clip-gen", "champion").version == "1"
    (made,) = materialisations(platform, "evaluation_report")
    (link,) = [one["url"] for one in made["metadataEntries"] if one["label"] == "report_page"]
    assert link.startswith(platform.mlflow)
    for tab in watch(browser, "light"):
        tab.page.goto(link)
        frame = tab.page.frame_locator("iframe").first
        frame.get_by_text("Reconstructions").first.wait_for(timeout=30_000)


def assert_the_graph_is_shown(platform: Platform, browser: Browser, folder: Path) -> None:
    for tab in watch(browser, "light"):
        tab.page.goto(f"{platform.webserver}/asset-groups")
        tab.page.get_by_text("images", exact=True).first.wait_for(timeout=30_000)
        tab.page.keyboard.press("Alt+e")  # all groups opened
        for asset in ASSETS - {"transformer_checkpoint"}:  # whose name is shortened
            tab.page.get_by_text(asset, exact=True).first.wait_for(timeout=30_000)
        tab.page.screenshot(path=folder / "dagster.png")


def assert_logs_are_json_with_ids_and_without_secrets(platform: Platform, run: str) -> None:
    said = platform.logs()
    lines = [json.loads(line) for line in said.splitlines() if line.startswith('{"')]
    steps = [one for one in lines if one.get("work") == "transformer" and one["dagster_run"] == run]
    assert steps and {"mlflow_run", "asset", "done", "steps_per_second", "timestamp"} <= steps[-1].keys()
    for secret in (PASSWORD, S3_SECRET):
        assert secret not in said
