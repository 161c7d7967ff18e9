import dagster as dg
from pydantic import Field

from pipelines import report
from pipelines.config import StageConfig
from pipelines.resources import RecipeResource, StorageResource

TRAINED = "trained"


class ClipEmbeddingsConfig(StageConfig):
    clip: str = Field(
        default=TRAINED,
        description="hub:MODEL/PRETRAINED, local-dir:FOLDER, or `trained`: what clip_checkpoint made.",
    )


@dg.asset(
    group_name="embeddings",
    kinds={"lance", "pytorch"},
    owners=["team:data"],
    deps=["raw_images", "clip_checkpoint"],
    pool="gpu",
    check_specs=[dg.AssetCheckSpec("one_row_per_image", asset="clip_embeddings", blocking=True)],
)
def clip_embeddings(
    context: dg.AssetExecutionContext,
    config: ClipEmbeddingsConfig,
    storage: StorageResource,
    recipe: RecipeResource,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """One L2-normalised CLIP image embedding a picture; pictures embedded before are not embedded again."""
    from clipgen_core.data.tables import open_table
    from clipgen_core.stages import embeddings
    from clipgen_core.tracking import NullTracker

    out = storage.open()
    trained = config.clip == TRAINED
    result = embeddings.run(
        recipe.stage("embeddings", config.all_overrides()),
        images=out.images,
        clip=out.current("clip", "clip_embeddings").path if trained else config.clip,
        out=out,
        tracker=NullTracker(),
    )
    images = open_table(out.images).count_rows()
    return dg.MaterializeResult(
        metadata={
            "table": dg.MetadataValue.path(result.table),
            "lance_version": result.version,
            "dagster/row_count": result.total,
            "embedded": result.embedded,
            "dimension": result.dim,
            "clip": result.clip,
            "clip_key": result.clip_key,
            "pictures_per_second": round(result.pictures_per_second, 2),
        },
        data_version=dg.DataVersion(result.digest),
        check_results=[
            report.check("one_row_per_image", result.total >= images, rows=result.total, images=images)
        ],
    )
