import dagster as dg

from pipelines import report
from pipelines.conditions import WHEN_FRESH
from pipelines.config import StageConfig, of_stage
from pipelines.resources import RecipeResource, StorageResource


@of_stage("duplicates")
class NearDuplicatesConfig(StageConfig):
    """Settings of the stage duplicates."""


@dg.asset(
    group_name="embeddings",
    kinds={"lance"},
    owners=["team:data"],
    deps=["clip_embeddings"],
    automation_condition=WHEN_FRESH,
)
def near_duplicates(
    config: NearDuplicatesConfig, storage: StorageResource, recipe: RecipeResource
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """The nearest other picture of each picture; `exclude_duplicates` of token_shards leaves them out."""
    from clipgen_core.stages import duplicates
    from clipgen_core.tracking import NullTracker

    stage, out = recipe.override(config.overrides()).duplicates, storage.open()
    embeddings = out.current("embeddings", "near_duplicates")
    result = duplicates.run(stage, embeddings=embeddings.path, out=out, tracker=NullTracker())
    shown = duplicates.preview(result.table, out.images, stage.threshold)
    return dg.MaterializeResult(
        metadata={
            "table": dg.MetadataValue.path(result.table),
            "looked_up": result.looked_up,
            "pairs": result.pairs,
            "redundant": result.redundant,
            "threshold": stage.threshold,
            **({"preview": report.picture(shown)} if shown else {}),
        },
        data_version=dg.DataVersion(embeddings.digest),
    )
