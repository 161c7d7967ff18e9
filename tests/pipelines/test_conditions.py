"""When tokens, trainings, reports and champions are made by themselves: the conditions, without a daemon."""

import itertools
from typing import Any

import dagster as dg

from pipelines.conditions import TRAINED_ON, Grown, when_updated
from pipelines.definitions import defs
from pipelines.partitions import VERSION


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
        cursor = first.cursor
        for version, expected in (
            ("a", 1),
            ("a", 0),
            ("b", 1),
            ("b", 0),
        ):  # the same again makes nothing stale
            event = dg.AssetMaterialization("embeddings", tags={VERSION: version})
            instance.report_runless_asset_event(event)
            result = asked(cursor)
            assert result.total_requested == expected
            cursor = result.cursor


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
        numbers = itertools.count()

        def asked() -> set[str]:
            nonlocal cursor
            result = dg.evaluate_automation_conditions(
                defs=[images, transformer, report, best], instance=instance, cursor=cursor
            )
            cursor = result.cursor
            keys = (dg.AssetKey("report"), dg.AssetKey("best"))
            return {key.to_user_string() for key in keys if result.get_num_requested(key)}

        def made(name: str, passed: bool | None = None) -> None:
            version = {VERSION: str(next(numbers))}
            instance.report_runless_asset_event(dg.AssetMaterialization(name, tags=version))
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
