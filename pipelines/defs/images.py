"""The assets `raw_images` and `folder_images`: the images of the source or of one folder, in a Lance table.

Whichever reads an image, the other one changes with it, and Dagster is told so.

Knows the stage's settings, results and partitions; knows nothing of file formats or tables.
"""

from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from pipelines import report
from pipelines.config import StageConfig, of_stage
from pipelines.partitions import (
    FOLDERS,
    IMAGES,
    LISTING,
    PARTITION_ROWS,
    ROWS,
    VERSION,
    FolderResource,
    folder_of,
    forget_vanished,
    key_of,
    record,
    record_observed,
    usable,
)
from pipelines.preflight import check_run
from pipelines.resources import ImagesResource, MlflowResource, RecipeResource, StorageResource
from pipelines.upstream import artefact

if TYPE_CHECKING:
    from clipgen_core.stages.images import Result
    from clipgen_core.storage import Storage


@of_stage("images")
class RawImagesConfig(StageConfig):
    """Settings of the stage images."""

    max_reject_share: float = Field(
        default=0.1, description="Largest share of rejected images that passes the check reject_share."
    )


def _checked(asset: str) -> dg.AssetCheckSpec:
    said = "At most max_reject_share of the images that were found are rejected."
    return dg.AssetCheckSpec("reject_share", asset=asset, description=said, blocking=True)


@dg.asset(
    group_name="images",
    kinds={"lance"},
    owners=["team:data"],
    deps=["source_images"],
    code_version="1",
    check_specs=[_checked("raw_images")],
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
    from clipgen_core.data.folders import by_folder
    from clipgen_core.stages import images as ingest

    check_run(context, storage=storage, images=images, recipe=recipe, mlflow=mlflow)
    out, source = storage.open(), images.require_source()
    stage = recipe.override(config.overrides()).images
    with mlflow.run(context, {"source": source}) as tracker:
        result = ingest.run(stage, source=source, out=out, tracker=tracker)
    listings = {folder: listing for folder, listing in result.listings.items() if usable(folder)}
    record_observed(context.instance, {key_of(folder): listing for folder, listing in listings.items()})
    forget_vanished(context.instance, map(key_of, result.vanished))
    stored = by_folder(result.table)
    for folder, listing in listings.items():
        digest, rows = (stored[folder].digest, stored[folder].rows) if folder in stored else ("empty", 0)
        facts = artefact(out, result.table, digest) | {PARTITION_ROWS: rows}
        record(context.instance, IMAGES, {VERSION: digest, LISTING: listing}, facts, key_of(folder))
    return dg.MaterializeResult(
        metadata={
            **_table(out, result),
            **report.columns(result.table),
            **mlflow.links(tracker),
            **_figures(result),
            "vanished_folders": list(result.vanished),
            **report.preview(ingest.preview(result.table)),
        },
        data_version=dg.DataVersion(result.digest),
        check_results=[_reject_share(config, result)],
    )


@dg.asset(
    group_name="images",
    kinds={"lance"},
    owners=["team:data"],
    deps=["source_images"],
    partitions_def=FOLDERS,
    backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=1),
    code_version="1",
    check_specs=[_checked("folder_images")],
)
def folder_images(
    context: dg.AssetExecutionContext,
    config: RawImagesConfig,
    storage: StorageResource,
    images: ImagesResource,
    recipe: RecipeResource,
    mlflow: MlflowResource,
    one_folder: FolderResource,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """The images of one top-level folder of the source, in the same table as raw_images."""
    from clipgen_core.data.folders import by_folder
    from clipgen_core.stages import images as ingest

    folder = folder_of(context.partition_key)
    check_run(context, storage=storage, images=images, recipe=recipe, mlflow=mlflow)
    out, source = storage.open(), images.require_source()
    stage = recipe.override(config.overrides()).images
    with mlflow.run(context, {"source": source}) as tracker:
        result = ingest.run(stage, source=source, out=out, tracker=tracker, folder=folder)
    record_observed(context.instance, {context.partition_key: result.listings[folder]})
    record(context.instance, "raw_images", {VERSION: result.digest}, _table(out, result))
    stored = by_folder(result.table, folder)[folder]
    return dg.MaterializeResult(
        metadata={
            **artefact(out, result.table, stored.digest),
            **report.columns(result.table),
            **mlflow.links(tracker),
            PARTITION_ROWS: stored.rows,
            **_figures(result),
            **report.preview(ingest.preview(result.table, folder)),
        },
        data_version=dg.DataVersion(stored.digest),
        tags={LISTING: result.listings[folder]},
        check_results=[_reject_share(config, result)],
    )


def _table(out: "Storage", result: "Result") -> dict[str, Any]:
    return {**artefact(out, result.table, result.digest), ROWS: result.total}


def _figures(result: "Result") -> dict[str, Any]:
    return {
        "images_found": result.found,
        "images_added": result.added,
        "images_replaced": result.replaced,
        "images_left": result.left,
        "missing_files": result.missing,
        "rejects": result.rejects,
        "other_files": result.others,
    }


def _reject_share(config: RawImagesConfig, result: "Result") -> dg.AssetCheckResult:
    share, most = result.reject_share, config.max_reject_share
    said = f"{share:.1%} of the images are rejected, at most {most:.1%} may be: see ROOT/rejects.lance"
    return report.check("reject_share", share <= most, said, share=share, at_most=most)
