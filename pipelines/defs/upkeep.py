"""The asset `table_upkeep`, its job and its weekly schedule: compact the Lance tables.

Knows how long old versions are kept; knows nothing of how tables are compacted.
"""

from datetime import timedelta

import dagster as dg
from pydantic import Field

from pipelines.resources import StorageResource


class TableUpkeepConfig(dg.Config):
    keep_days: float = Field(
        default=7, ge=0, description="Older versions go, unless a model was trained on them."
    )


@dg.asset(
    group_name="images",
    kinds={"lance"},
    owners=["team:data"],
    deps=["raw_images", "clip_embeddings"],
    code_version="1",
    freshness_policy=dg.FreshnessPolicy.time_window(
        warn_window=timedelta(days=8), fail_window=timedelta(days=15)
    ),
)
def table_upkeep(config: TableUpkeepConfig, storage: StorageResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Small files joined, old versions removed; tagged versions, which models were trained on, stay."""
    from clipgen_core.data.upkeep import compact, tables

    joined, removed = 0, 0
    for url in tables(storage.open()):
        files, size = compact(url, timedelta(days=config.keep_days))
        joined, removed = joined + files, removed + size
    return dg.MaterializeResult(metadata={"files_joined": joined, "bytes_removed": removed})


upkeep = dg.define_asset_job("upkeep", selection=["table_upkeep"], description="Compact the Lance tables.")
weekly_upkeep = dg.ScheduleDefinition(job=upkeep, cron_schedule="0 5 * * 0")
