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
from pipelines.conditions import TRAINED_ON, Grown, when_updated
from pipelines.definitions import defs
from pipelines.defs.automation import new_folders, nightly_embeddings
from pipelines.partitions import ALL, NAME
from pipelines.resources import ImagesResource
from tests.conftest import draw
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

    def resources(self) -> dict[str, Any]:
        return {"images": ImagesResource(source=str(self.source), clip=self.clip)}

    def tick(self) -> list[str]:
        """The sensor once; its requests are run."""
        with dg.build_sensor_context(
            self.instance, cursor=self.cursor, resources=self.resources(), sensor_name="new_folders"
        ) as context:
            result = new_folders(context)
        assert isinstance(result, dg.SensorResult)
        self.cursor, self.events = result.cursor, result.asset_events
        for request in result.dynamic_partitions_requests or []:
            self.instance.add_dynamic_partitions(NAME, list(request.partition_keys))
        return self.run(result.run_requests or [])

    def night(self) -> list[str]:
        """The schedule once; its requests are run."""
        now = datetime.datetime.now(datetime.UTC)
        with dg.build_schedule_context(self.instance, now, resources=self.resources()) as context:
            asked = [one for one in nightly_embeddings(context) if isinstance(one, dg.RunRequest)]
        return self.run(asked)

    def run(self, requests: Any) -> list[str]:
        keys = [str(request.partition_key) for request in requests]
        for key in keys:
            result = execute("new_images", self.config(), instance=self.instance, partition_key=key)
            assert result.success
        return keys

    def embedded(self) -> int:
        return len(column(Storage(str(self.root)).current("embeddings", "tests").path, "id"))


@pytest.fixture
def world(source: Path, clip_reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(recipes.RECIPES, "tiny", TINY)
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:
        yield World(instance, source, tmp_path / "root", clip_reference)


@pytest.mark.slow
def test_new_and_changed_folders_are_taken_in_one_run_each(world: World) -> None:
    assert world.tick() == ["discs", "more"]
    assert world.embedded() == 2
    assert world.tick() == []
    (world.source / "late" / "deep").mkdir(parents=True)
    draw("gold", "cross").save(world.source / "late" / "deep" / "one.png")
    draw("gold", "disc").save(world.source / "discs" / "two.png")
    draw("teal", "disc").save(world.source / "loose.png")
    assert world.tick() == [".", "discs", "late"]
    assert world.embedded() == 5
    made = world.instance.get_materialized_partitions(dg.AssetKey("clip_embeddings"))
    assert made == {".", "discs", "late", "more"}
    shutil.rmtree(world.source / "more")
    assert world.tick() == []
    (event,) = world.events
    assert (event.partition, event.metadata["vanished"].value) == ("more", True)
    assert world.embedded() == 5


@pytest.mark.slow
def test_the_night_finds_what_the_sensor_cannot_see(world: World) -> None:
    assert execute("clip_gen", world.config(), instance=world.instance, asset_selection=SELECTED).success
    assert set(world.instance.get_dynamic_partitions(NAME)) == {ALL, "discs", "more"}
    assert world.night() == []
    world.tick()
    draw("green", "disc").save(world.source / "more" / "one.png")  # in place
    assert world.tick() == []
    assert world.night() == ["more"]
    assert world.night() == []
    taken = execute(
        "new_images",
        world.config(),
        instance=world.instance,
        partition_key="discs",
        asset_selection=[dg.AssetKey("raw_images")],
    )
    assert taken.success
    assert world.night() == ["discs"]


SELECTED = [dg.AssetKey("raw_images"), dg.AssetKey("clip_embeddings")]


def test_without_a_source_the_sensor_says_how_to_name_one() -> None:
    with (
        dg.build_sensor_context(resources={"images": ImagesResource()}, sensor_name="new_folders") as context,
        pytest.raises(dg.Failure, match="CLIPGEN_SOURCE"),
    ):
        new_folders(context)


def test_training_waits_until_the_data_have_grown() -> None:
    @dg.asset
    def shards() -> None: ...

    @dg.asset(deps=[shards], automation_condition=Grown(upstream="shards", share=0.2))
    def model() -> None: ...

    def asked(instance: dg.DagsterInstance) -> int:
        return dg.evaluate_automation_conditions(defs=[shards, model], instance=instance).total_requested

    with dg.DagsterInstance.ephemeral() as instance:
        assert asked(instance) == 0
        for rows, trained_on, expected in ((100, None, 0), (100, 100, 0), (119, None, 0), (120, None, 1)):
            instance.report_runless_asset_event(
                dg.AssetMaterialization("shards", metadata={"dagster/row_count": rows})
            )
            if trained_on:
                instance.report_runless_asset_event(
                    dg.AssetMaterialization("model", metadata={TRAINED_ON: trained_on})
                )
            assert asked(instance) == expected, rows


def test_tokens_are_made_when_embeddings_or_the_vqgan_are_newer() -> None:
    conditions = {
        spec.key.to_user_string(): spec.automation_condition
        for spec in defs().resolve_all_asset_specs()
        if spec.automation_condition
    }
    assert set(conditions) == {
        "near_duplicates",
        "token_shards",
        "transformer_checkpoint",
        "vqgan_checkpoint",
        "evaluation_report",
        "champion",
    }

    @dg.asset
    def embeddings() -> None: ...

    @dg.asset(deps=[embeddings], automation_condition=conditions["token_shards"])
    def tokens() -> None: ...

    with dg.DagsterInstance.ephemeral() as instance:

        def asked(cursor: Any) -> Any:
            return dg.evaluate_automation_conditions(
                defs=[embeddings, tokens], instance=instance, cursor=cursor
            )

        first = asked(None)
        assert first.total_requested == 0
        instance.report_runless_asset_event(dg.AssetMaterialization("embeddings"))
        second = asked(first.cursor)
        assert second.total_requested == 1
        assert asked(second.cursor).total_requested == 0


def test_a_report_waits_for_its_transformer_and_a_champion_for_passed_checks() -> None:
    @dg.asset
    def images() -> None: ...

    @dg.asset
    def transformer() -> None: ...

    @dg.asset(
        deps=[images, transformer],
        automation_condition=when_updated("transformer"),
        check_specs=[dg.AssetCheckSpec("good", asset="report", blocking=True)],
    )
    def report() -> dg.MaterializeResult:  # type: ignore[type-arg]
        return dg.MaterializeResult()

    @dg.asset(deps=[report], automation_condition=when_updated("report"))
    def best() -> None: ...

    with dg.DagsterInstance.ephemeral() as instance:
        cursor: Any = None

        def asked() -> set[str]:
            nonlocal cursor
            result = dg.evaluate_automation_conditions(
                defs=[images, transformer, report, best], instance=instance, cursor=cursor
            )
            cursor = result.cursor
            keys = (dg.AssetKey("report"), dg.AssetKey("best"))
            return {key.to_user_string() for key in keys if result.get_num_requested(key)}

        def made(name: str, passed: bool | None = None) -> None:
            instance.report_runless_asset_event(dg.AssetMaterialization(name))
            if passed is not None:
                said = dg.AssetCheckEvaluation(
                    asset_key=dg.AssetKey(name), check_name="good", passed=passed, metadata={}, blocking=True
                )
                instance.report_runless_asset_event(said)

        assert asked() == set()
        made("images")
        assert asked() == set()
        made("transformer")
        assert asked() == {"report", "best"}  # in one run, in which a failed check stops the second
        made("report", passed=False)
        assert asked() == set()
        made("report", passed=True)
        assert asked() == {"best"}
