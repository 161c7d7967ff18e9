import dagster as dg

from pipelines import report
from pipelines.cluster import node
from pipelines.config import StageConfig, of_stage
from pipelines.partitions import FOLDERS, folder_of, record_all
from pipelines.resources import PicturesResource, RecipeResource, StorageResource


@of_stage("embeddings")
class ClipEmbeddingsConfig(StageConfig):
    """Settings of the stage embeddings."""


@dg.asset(
    group_name="embeddings",
    kinds={"lance", "pytorch"},
    owners=["team:data"],
    deps=["raw_images", "clip_checkpoint"],
    partitions_def=FOLDERS,
    pool="gpu",
    op_tags=node(memory="16Gi", gpu=True),
    check_specs=[dg.AssetCheckSpec("one_row_per_image", asset="clip_embeddings", blocking=True)],
)
def clip_embeddings(
    context: dg.AssetExecutionContext,
    config: ClipEmbeddingsConfig,
    storage: StorageResource,
    pictures: PicturesResource,
    recipe: RecipeResource,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """One L2-normalised CLIP image embedding a picture; pictures embedded before are not embedded again."""
    from clipgen_core.data.tables import count, open_table
    from clipgen_core.stages import embeddings
    from clipgen_core.tracking import NullTracker

    out = storage.open()
    folder = folder_of(context.partition_key)
    result = embeddings.run(
        recipe.override(config.overrides()).embeddings,
        images=out.images,
        clip=pictures.clip_under(out),
        out=out,
        tracker=NullTracker(),
        folder=folder,
    )
    record_all(context)
    rows, images = (count(open_table(url), folder) for url in (result.table, out.images))
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
        check_results=[report.check("one_row_per_image", rows >= images, rows=rows, images=images)],
    )
