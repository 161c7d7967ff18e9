"""New folders, changed folders, folders that are gone: through the sensor, the schedule and real runs."""

import datetime
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from clipgen_core import recipes
from clipgen_core.data.tables import column
from clipgen_core.storage import Storage
from pipelines import partitions
from pipelines.definitions import defs
from pipelines.defs.automation import new_folders, source_observation
from pipelines.partitions import NAME, VERSION
from tests.conftest import draw
from tests.core.stages.test_evaluation import another_clip
from tests.pipelines.test_assets import TINY, execute


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    for name, colour in (("discs", "red"), ("more", "blue")):
        (folder / name).mkdir(parents=True)
        draw(colour, "disc").save(folder / name / "one.png")
    return folder


class World:
    """An instance, a root and a source, and what the daemon would do with them."""

    def __init__(self, instance: dg.DagsterInstance, source: Path, root: Path, clip: str) -> None:
        self.instance, self.source, self.root, self.clip = instance, source, root, clip
        self.cursor: str | None = None

    def config(self) -> dict[str, Any]:
        pictures = {"source": str(self.source), "clip": self.clip}
        return {
            "resources": {
                "storage": {"config": {"root": str(self.root)}},
                "images": {"config": pictures},
                "recipe": {"config": {"name": "tiny"}},
                "mlflow": {"config": {"local_folder": str(self.root.parent / "mlflow")}},
            }
        }

    def observe(self, times: int = 1) -> None:
        given = {"resources": {"images": self.config()["resources"]["images"]}}
        for _ in range(times):
            assert execute("observation", given, instance=self.instance).success

    def all_images(self) -> dg.ExecuteInProcessResult:
        return execute("all_images", self.config(), instance=self.instance)

    def requests(self) -> list[dg.RunRequest]:
        """What one tick of the sensor requests."""
        options = {"cursor": self.cursor, "sensor_name": "new_folders"}
        with dg.build_sensor_context(self.instance, **options) as context:
            asked = new_folders(context)
        if isinstance(asked, dg.SkipReason):
            return []
        assert isinstance(asked, dg.SensorResult)
        self.cursor = asked.cursor
        return list(asked.run_requests or [])

    def tick(self) -> list[str]:
        """The sensor once; its requests are run."""
        asked = self.requests()
        for request in asked:
            key = str(request.partition_key)
            options = {"instance": self.instance, "partition_key": key, "tags": dict(request.tags)}
            assert execute("new_images", self.config(), **options).success
        return [str(request.partition_key) for request in asked]

    def embedded(self) -> int:
        return len(column(Storage(str(self.root)).current("embeddings", "tests").path, "id"))

    def latest(self, asset: str, key: str | None = None) -> dg.AssetMaterialization:
        chosen = dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[key] if key else None)
        made = self.instance.fetch_materializations(chosen, limit=1).records[0].asset_materialization
        assert made
        return made

    def versions(self) -> dict[str, Any]:
        names = ("raw_images", "clip_embeddings")
        made = {name: (self.latest(name).tags or {})[VERSION] for name in names}
        for name in ("folder_images", "folder_embeddings"):
            for key in self.instance.get_dynamic_partitions(NAME):
                made[f"{name}/{key}"] = (self.latest(name, key).tags or {})[VERSION]
        return made


@pytest.fixture
def world(source: Path, clip_reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(recipes.RECIPES, "tiny", TINY)
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:
        yield World(instance, source, tmp_path / "root", clip_reference)


@pytest.mark.slow
def test_new_and_changed_folders_are_taken_in_one_run_each(world: World) -> None:
    assert world.tick() == []  # nothing was observed
    world.observe(2)
    assert world.tick() == ["discs", "more"]
    assert world.embedded() == 2
    assert world.tick() == []
    (world.source / "late" / "deep").mkdir(parents=True)
    draw("gold", "cross").save(world.source / "late" / "deep" / "one.png")
    draw("gold", "disc").save(world.source / "discs" / "two.png")
    draw("teal", "disc").save(world.source / "loose.png")
    draw("green", "disc").save(world.source / "more" / "one.png")  # in place
    world.observe()
    assert world.tick() == []  # they may still be copied
    world.observe()
    assert world.tick() == [".", "discs", "late", "more"]
    assert world.embedded() == 5
    made = world.latest("folder_images", "discs")
    assert made.metadata["dagster/partition_row_count"].value == 2
    assert world.latest("raw_images").metadata["dagster/row_count"].value == 5
    assert world.latest("clip_embeddings").metadata["dagster/row_count"].value == 5


@pytest.mark.slow
def test_what_the_whole_source_took_in_is_not_taken_in_again(world: World) -> None:
    assert world.all_images().success
    before = world.versions()
    assert len(before) == 6
    world.observe(2)
    assert world.tick() == []
    assert world.all_images().success
    assert execute("new_images", world.config(), instance=world.instance, partition_key="discs").success
    assert world.versions() == before  # nothing changed, so that nothing is stale
    draw("gold", "disc").save(world.source / "discs" / "two.png")
    world.observe(2)
    assert world.tick() == ["discs"]
    changed = {name for name, version in world.versions().items() if version != before[name]}
    assert changed == {"raw_images", "clip_embeddings", "folder_images/discs", "folder_embeddings/discs"}


@pytest.mark.slow
def test_the_partition_of_a_folder_that_is_gone_goes_and_comes_back(world: World) -> None:
    world.instance.add_dynamic_partitions(NAME, ["all folders"])  # of an earlier version
    assert world.all_images().success
    kept = world.source.parent / "kept"
    shutil.move(world.source / "more", kept)
    world.observe(2)
    assert set(world.instance.get_dynamic_partitions(NAME)) == {"discs"}
    assert world.tick() == [] and world.embedded() == 2
    shutil.move(kept, world.source / "more")
    world.observe(2)
    assert world.tick() == ["more"]  # its rows may have been pruned
    shutil.rmtree(world.source / "more")
    assert world.all_images().success  # which lists the whole source, too
    assert set(world.instance.get_dynamic_partitions(NAME)) == {"discs"}
    shutil.rmtree(world.source)
    world.source.mkdir()
    given = {"resources": {"images": world.config()["resources"]["images"]}}
    failed = execute("observation", given, instance=world.instance, raise_on_error=False)
    assert not failed.success
    assert set(world.instance.get_dynamic_partitions(NAME)) == {"discs"}


@pytest.mark.slow
def test_a_failed_folder_is_requested_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(world.source / "more")
    world.observe(2)
    (request,) = world.requests()
    given = world.config()
    given["resources"]["images"]["config"]["clip"] = "local-dir:/nowhere"
    options = {"instance": world.instance, "partition_key": "discs", "tags": dict(request.tags)}
    assert not execute("new_images", given, raise_on_error=False, **options).success
    assert world.requests() == []  # at once it would fail again
    monkeypatch.setattr(partitions, "AGAIN", datetime.timedelta(0))
    assert world.tick() == ["discs"]
    assert world.embedded() == 1


def test_a_folder_that_is_read_or_embedded_now_is_not_requested(world: World) -> None:
    world.observe(2)
    job = defs().resolve_job_def("new_images")
    tags = {"dagster/partition": "more"}
    run = world.instance.create_run_for_job(job, tags=tags, status=dg.DagsterRunStatus.STARTED)
    assert [request.partition_key for request in world.requests()] == ["discs"]
    of_backfill = {
        "dagster/asset_partition_range_start": "discs",
        "dagster/asset_partition_range_end": "discs",
    }
    started = dg.DagsterRunStatus.STARTED
    backfill = world.instance.create_run_for_job(job, tags=of_backfill, status=started)
    assert world.requests() == []
    world.instance.delete_run(backfill.run_id)
    world.instance.delete_run(run.run_id)
    world.instance.create_run_for_job(defs().resolve_job_def("clip_gen"), status=dg.DagsterRunStatus.STARTED)
    assert world.requests() == []


def test_an_observation_waits_for_the_last_one(world: World) -> None:
    def asked() -> Any:
        with dg.build_schedule_context(world.instance) as context:
            return source_observation(context)

    assert isinstance(asked(), dg.RunRequest)
    job = defs().resolve_job_def("observation")
    world.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    assert isinstance(asked(), dg.SkipReason)


def test_without_a_partition_new_images_says_what_to_choose(world: World) -> None:
    world.observe()
    with pytest.raises(dg.DagsterResourceFunctionError) as failed:
        execute("new_images", world.config(), instance=world.instance)
    assert "choose its partition, or run the job all_images" in str(failed.value.__cause__)


@pytest.mark.slow
def test_another_clip_becomes_the_current_one_when_all_folders_have_it(world: World, tmp_path: Path) -> None:
    assert world.all_images().success
    before = Storage(str(world.root)).current("embeddings", "tests").path
    world.clip = another_clip(tmp_path / "other", 2)
    options = {"instance": world.instance}
    assert execute("new_images", world.config(), partition_key="discs", **options).success
    assert Storage(str(world.root)).current("embeddings", "tests").path == before
    lacking = world.latest("folder_embeddings", "discs").metadata["folders_without_embeddings"].value
    assert lacking == ["more"]
    assert execute("new_images", world.config(), partition_key="more", **options).success
    assert Storage(str(world.root)).current("embeddings", "tests").path != before
    assert world.embedded() == 2


def test_without_a_source_an_observation_says_how_to_name_one() -> None:
    with pytest.raises(dg.Failure, match="CLIPGEN_SOURCE"):
        execute("observation", {"resources": {"images": {"config": {"source": ""}}}})
