"""The asset `clip_embeddings`: one CLIP embedding per image, in a Lance table, by top-level folder.

Knows the stage's settings, results and partitions; knows nothing of models or tables.
"""

import dagster as dg

from pipelines import report
from pipelines.cluster import node
from pipelines.config import StageConfig, of_stage
from pipelines.partitions import FOLDERS, folder_of, record_all
from pipelines.resources import TRAINED, ImagesResource, MlflowResource, RecipeResource, StorageResource
from pipelines.upstream import artefact, upstream


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
    images: ImagesResource,
    recipe: RecipeResource,
    mlflow: MlflowResource,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """One L2-normalised CLIP embedding per image; images that have one are not embedded again."""
    from clipgen_core.data.keys import digest_of_keys
    from clipgen_core.data.tables import count, open_table, scan_keys
    from clipgen_core.stages import embeddings

    out, folder = storage.open(), folder_of(context.partition_key)
    clip = upstream(context, out, "clip").path if images.clip == TRAINED else images.clip
    stage = recipe.override(config.overrides()).embeddings
    images_digest = digest_of_keys(scan_keys(open_table(out.images)))
    with mlflow.run(context, {"images": images_digest, "clip": clip}) as tracker:
        result = embeddings.run(stage, images=out.images, clip=clip, out=out, tracker=tracker, folder=folder)
    record_all(context)
    rows, stored = (count(open_table(url), folder) for url in (result.table, out.images))
    return dg.MaterializeResult(
        metadata={
            **artefact(out, result.table, result.digest),
            **mlflow.links(tracker),
            "lance_version": result.version,
            "dagster/row_count": result.total,
            "embedded": result.embedded,
            "dimension": result.dim,
            "clip": result.clip,
            "clip_key": result.clip_key,
            "images_per_second": round(result.images_per_second, 2),
        },
        data_version=dg.DataVersion(result.digest),
        check_results=[report.check("one_row_per_image", rows >= stored, rows=rows, images=stored)],
    )
