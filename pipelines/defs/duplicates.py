"""The asset `near_duplicates`: for each image the other one that looks most like it.

Knows the stage's settings and results; knows nothing of how neighbours are searched.
"""

import dagster as dg

from pipelines import report
from pipelines.conditions import WHEN_FRESH
from pipelines.config import StageConfig, of_stage
from pipelines.preflight import check_run
from pipelines.resources import MlflowResource, RecipeResource, StorageResource
from pipelines.upstream import artefact, upstream


@of_stage("duplicates")
class NearDuplicatesConfig(StageConfig):
    """Settings of the stage duplicates."""


@dg.asset(
    group_name="embeddings",
    kinds={"lance"},
    owners=["team:data"],
    code_version="1",
    deps=["clip_embeddings"],
    automation_condition=WHEN_FRESH,
)
def near_duplicates(
    context: dg.AssetExecutionContext,
    config: NearDuplicatesConfig,
    storage: StorageResource,
    recipe: RecipeResource,
    mlflow: MlflowResource,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """The nearest other image of each image; `exclude_duplicates` of token_shards leaves them out."""
    from clipgen_core.stages import duplicates

    check_run(context, storage=storage, recipe=recipe, mlflow=mlflow)
    stage, out = recipe.override(config.overrides()).duplicates, storage.open()
    embeddings = upstream(context, out, "embeddings")
    with mlflow.run(context, {"embeddings": embeddings.digest}) as tracker:
        result = duplicates.run(stage, embeddings=embeddings.path, out=out, tracker=tracker)
    shown = duplicates.preview(result.table, out.images, stage.threshold)
    return dg.MaterializeResult(
        metadata={
            **artefact(out, result.table, embeddings.digest),
            **report.columns(result.table),
            **mlflow.links(tracker),
            "looked_up": result.looked_up,
            "pairs": result.pairs,
            "redundant": result.redundant,
            "threshold": stage.threshold,
            **report.preview(shown),
        },
        data_version=dg.DataVersion(embeddings.digest),
    )
