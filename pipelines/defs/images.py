import dagster as dg
from pydantic import Field

from pipelines import report
from pipelines.config import StageConfig, of_stage
from pipelines.partitions import FOLDERS, LISTING, folder_of, key_of, record_folders
from pipelines.resources import PicturesResource, RecipeResource, StorageResource


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
    pictures: PicturesResource,
    recipe: RecipeResource,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Every distinct picture of the source, one row each; rejects are listed with their reason."""
    from clipgen_core.stages import images
    from clipgen_core.tracking import NullTracker

    result = images.run(
        recipe.override(config.overrides()).images,
        source=pictures.require_source(),
        out=storage.open(),
        tracker=NullTracker(),
        folder=folder_of(context.partition_key),
    )
    record_folders(context, result.listings)
    listings = {key_of(folder): listing for folder, listing in result.listings.items()}
    share = result.reject_share
    return dg.MaterializeResult(
        metadata={
            "table": dg.MetadataValue.path(result.table),
            "dagster/row_count": result.total,
            "pictures_found": result.found,
            "pictures_added": result.added,
            "rejects": result.rejects,
            "vanished_folders": list(result.vanished),
            "digest": result.digest,
            LISTING: listings.get(context.partition_key, result.digest),
            "preview": report.picture(images.preview(result.table)),
        },
        data_version=dg.DataVersion(result.digest),
        check_results=[report.check("reject_share", share <= config.max_reject_share, share=share)],
    )
