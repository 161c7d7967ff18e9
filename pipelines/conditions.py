"""When downstream assets are materialised automatically."""

from dataclasses import dataclass

import dagster as dg

ROWS = "dagster/row_count"
TRAINED_ON = "trained_on"  # metadata: how many rows a checkpoint was trained on


@dataclass(frozen=True)
class Grown(dg.AutomationCondition):  # type: ignore[type-arg]
    """True when `upstream` has grown by `share` since this asset was trained."""

    upstream: str
    share: float

    @property
    def description(self) -> str:
        return f"{self.upstream} has grown by {self.share:.0%} since the last training"

    def evaluate(self, context: dg.AutomationContext) -> dg.AutomationResult:  # type: ignore[type-arg]
        instance = context.asset_graph_view.instance
        now = _figure(instance, dg.AssetKey(self.upstream), ROWS)
        before = _figure(instance, context.key, TRAINED_ON)
        grown = now is not None and before is not None and now >= before * (1 + self.share)
        return dg.AutomationResult(context, context.candidate_subset if grown else context.get_empty_subset())


def _figure(instance: dg.DagsterInstance, key: dg.AssetKey, name: str) -> float | None:
    event = instance.get_latest_materialization_event(key)
    materialization = event.asset_materialization if event else None
    value = materialization.metadata.get(name) if materialization else None
    return float(str(value.value)) if value else None


def settled(condition: dg.AutomationCondition) -> dg.AutomationCondition:  # type: ignore[type-arg]
    """The condition, while neither this asset nor one upstream of it is being materialised."""
    busy = dg.AutomationCondition.any_deps_in_progress() | dg.AutomationCondition.in_progress()
    return condition & ~busy


CHANGED = (  # what holds the same data after a run makes nothing stale
    dg.AutomationCondition.data_version_changed() & ~dg.AutomationCondition.executed_with_root_target()
) | dg.AutomationCondition.will_be_requested()
WHEN_FRESH = settled(dg.AutomationCondition.any_deps_match(CHANGED).since_last_handled())


def when_updated(*upstream: str) -> dg.AutomationCondition:  # type: ignore[type-arg]
    """When the data version of one of these has changed, and every blocking check on the way passed."""
    updated = dg.AutomationCondition.any_deps_match(CHANGED).allow(dg.AssetSelection.assets(*upstream))
    passed = dg.AutomationCondition.all_deps_blocking_checks_passed()
    return settled(updated.since_last_handled()) & passed
