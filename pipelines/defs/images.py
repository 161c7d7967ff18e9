import dagster as dg
from pydantic import Field

from pipelines import report
from pipelines.config import StageConfig
from pipelines.resources import RecipeResource, StorageResource


class RawImagesConfig(StageConfig):
    source: str = Field(description="A folder of pictures: local, or any fsspec URL such as s3://…")
    max_reject_share: float = Field(default=0.1, description="More rejects than this fail the check.")


@dg.asset(
    group_name="images",
    kinds={"lance"},
    owners=["team:data"],
    check_specs=[dg.AssetCheckSpec("reject_share", asset="raw_images", blocking=True)],
)
def raw_images(
    context: dg.AssetExecutionContext,
    config: RawImagesConfig,
    storage: StorageResource,
    recipe: RecipeResource,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Every distinct picture of the source folder, one row each; rejects are listed with their reason."""
    from clipgen_core.stages import images
    from clipgen_core.tracking import NullTracker

    result = images.run(
        recipe.stage("images", config.all_overrides()),
        source=config.source,
        out=storage.open(),
        tracker=NullTracker(),
    )
    share = result.reject_share
    return dg.MaterializeResult(
        metadata={
            "table": dg.MetadataValue.path(result.table),
            "dagster/row_count": result.total,
            "files_found": result.found,
            "pictures_added": result.added,
            "rejects": result.rejects,
            "digest": result.digest,
            "preview": report.picture(images.preview(result.table)),
        },
        data_version=dg.DataVersion(result.digest),
        check_results=[report.check("reject_share", share <= config.max_reject_share, share=share)],
    )
