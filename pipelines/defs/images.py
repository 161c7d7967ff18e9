"""The asset `raw_images`: the images of the source, in a Lance table, by top-level folder.

Knows the stage's settings, results and partitions; knows nothing of file formats or tables.
"""

import dagster as dg
from pydantic import Field

from pipelines import report
from pipelines.config import StageConfig, of_stage
from pipelines.partitions import FOLDERS, LISTING, folder_of, key_of, record_folders
from pipelines.preflight import check_run
from pipelines.resources import ImagesResource, MlflowResource, RecipeResource, StorageResource
from pipelines.upstream import artefact


@of_stage("images")
class RawImagesConfig(StageConfig):
    """Settings of the stage images."""

    max_reject_share: float = Field(
        default=0.1, description="Largest share of rejected images that passes the check reject_share."
    )


@dg.asset(
    group_name="images",
    kinds={"lance"},
    owners=["team:data"],
    partitions_def=FOLDERS,
    check_specs=[dg.AssetCheckSpec("reject_share", asset="raw_images", blocking=True)],
)
def raw_images(
    context: dg.AssetExecutionContext,
    config: RawImagesConfig,
    storage: StorageResource,
    images: ImagesResource,
    recipe: RecipeResource,
    mlflow: MlflowResource,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Every distinct image of the source, one row each; rejects are listed with their reason."""
    from clipgen_core.stages import images as ingest

    check_run(context, storage=storage, images=images, recipe=recipe, mlflow=mlflow)
    out, source, folder = storage.open(), images.require_source(), folder_of(context.partition_key)
    stage = recipe.override(config.overrides()).images
    with mlflow.run(context, {"source": source}) as tracker:
        result = ingest.run(stage, source=source, out=out, tracker=tracker, folder=folder)
    record_folders(context, result.listings)
    listings = {key_of(folder): listing for folder, listing in result.listings.items()}
    share = result.reject_share
    return dg.MaterializeResult(
        metadata={
            **artefact(out, result.table, result.digest),
            **mlflow.links(tracker),
            "dagster/row_count": result.total,
            "images_found": result.found,
            "images_added": result.added,
            "images_replaced": result.replaced,
            "images_left": result.left,
            "missing_files": result.missing,
            "rejects": result.rejects,
            "other_files": result.others,
            "vanished_folders": list(result.vanished),
            LISTING: listings.get(context.partition_key, result.digest),
            "preview": report.picture(ingest.preview(result.table)),
        },
        data_version=dg.DataVersion(result.digest),
        check_results=[report.check("reject_share", share <= config.max_reject_share, share=share)],
    )
