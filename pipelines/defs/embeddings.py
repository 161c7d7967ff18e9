"""The assets `clip_embeddings` and `folder_embeddings`: one CLIP embedding per image, in one Lance table.

Knows the stage's settings, results and partitions; knows nothing of models or tables.
"""

from typing import TYPE_CHECKING, Any

import dagster as dg

from pipelines import report
from pipelines.cluster import node
from pipelines.config import StageConfig, of_stage
from pipelines.partitions import (
    EMBEDDED,
    EMBEDDINGS,
    FOLDERS,
    PARTITION_ROWS,
    ROWS,
    VERSION,
    FolderResource,
    folder_of,
    key_of,
    record,
    usable,
)
from pipelines.preflight import check_run
from pipelines.resources import TRAINED, ImagesResource, MlflowResource, RecipeResource, StorageResource
from pipelines.upstream import artefact, upstream

if TYPE_CHECKING:
    from clipgen_core.stages.embeddings import Result
    from clipgen_core.storage import Storage


@of_stage("embeddings")
class ClipEmbeddingsConfig(StageConfig):
    """Settings of the stage embeddings."""


def _checked(asset: str) -> dg.AssetCheckSpec:
    said = "Every image of the images table has an embedding."
    return dg.AssetCheckSpec("one_row_per_image", asset=asset, description=said, blocking=True)


@dg.asset(
    group_name="embeddings",
    kinds={"lance", "pytorch"},
    owners=["team:data"],
    deps=["raw_images", "clip_checkpoint"],
    pool="gpu",
    op_tags=node("embeddings", memory=16),
    code_version="1",
    check_specs=[_checked("clip_embeddings")],
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
    from clipgen_core.data.folders import by_folder, lacking
    from clipgen_core.data.tables import count, open_table
    from clipgen_core.stages import embeddings

    out = storage.open()
    check_run(context, storage=storage, images=images, recipe=recipe, mlflow=mlflow)
    clip, digest = _inputs(context, out, images)
    stage = recipe.override(config.overrides()).embeddings
    with mlflow.run(context, {"images": digest, "clip": clip}) as tracker:
        result = embeddings.run(stage, images=out.images, clip=clip, out=out, tracker=tracker)
    missing, stored = lacking(out.images, result.table), by_folder(out.images)
    embedded = by_folder(result.table)
    for folder in {name for name in stored if usable(name)} & set(embedded) - set(missing):
        tags = {VERSION: f"{result.clip_key}-{embedded[folder].digest}", EMBEDDED: stored[folder].digest}
        facts = artefact(out, result.table, result.digest) | {PARTITION_ROWS: embedded[folder].rows}
        record(context.instance, EMBEDDINGS, tags, facts, key_of(folder))
    return dg.MaterializeResult(
        metadata={
            **_table(out, result),
            **report.columns(result.table),
            **mlflow.links(tracker),
            **_figures(result),
        },
        data_version=_version(result),
        check_results=[
            _complete(not missing, result.total, count(open_table(out.images))),
        ],
    )


@dg.asset(
    group_name="embeddings",
    kinds={"lance", "pytorch"},
    owners=["team:data"],
    deps=["folder_images", "clip_checkpoint"],
    partitions_def=FOLDERS,
    backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=1),
    pool="gpu",
    op_tags=node("embeddings", memory=16),
    code_version="1",
    check_specs=[_checked("folder_embeddings")],
)
def folder_embeddings(
    context: dg.AssetExecutionContext,
    config: ClipEmbeddingsConfig,
    storage: StorageResource,
    images: ImagesResource,
    recipe: RecipeResource,
    mlflow: MlflowResource,
    one_folder: FolderResource,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """The embeddings of one top-level folder, in the same table as clip_embeddings."""
    from clipgen_core.data.folders import by_folder, lacking
    from clipgen_core.stages import embeddings

    folder, out = folder_of(context.partition_key), storage.open()
    check_run(context, storage=storage, images=images, recipe=recipe, mlflow=mlflow)
    clip, digest = _inputs(context, out, images)
    stage = recipe.override(config.overrides()).embeddings
    with mlflow.run(context, {"images": digest, "clip": clip}) as tracker:
        result = embeddings.run(stage, images=out.images, clip=clip, out=out, tracker=tracker, folder=folder)
    missing = lacking(out.images, result.table)
    if not missing:
        record(context.instance, "clip_embeddings", {VERSION: _version(result).value}, _table(out, result))
    stored, rows = (by_folder(url, folder)[folder] for url in (out.images, result.table))
    return dg.MaterializeResult(
        metadata={
            **artefact(out, result.table, result.digest),
            **report.columns(result.table),
            **mlflow.links(tracker),
            PARTITION_ROWS: rows.rows,
            **_figures(result),
            "folders_without_embeddings": sorted(missing),
        },
        data_version=dg.DataVersion(f"{result.clip_key}-{rows.digest}"),
        tags={EMBEDDED: stored.digest},
        check_results=[_complete(folder not in missing, rows.rows, stored.rows)],
    )


def _complete(passed: bool, rows: int, images: int) -> dg.AssetCheckResult:
    said = f"there are {rows} embeddings for {images} images: materialise the asset again"
    return report.check("one_row_per_image", passed, said, rows=rows, images=images)


def _inputs(context: dg.AssetExecutionContext, out: "Storage", images: ImagesResource) -> tuple[str, str]:
    """The CLIP, and the digest of the images."""
    from clipgen_core.data.folders import digest_of_ids

    clip = upstream(context, out, "clip").path if images.clip == TRAINED else images.clip
    return clip, digest_of_ids(out.images)


def _table(out: "Storage", result: "Result") -> dict[str, Any]:
    return {**artefact(out, result.table, result.digest), ROWS: result.total, "lance_version": result.version}


def _version(result: "Result") -> dg.DataVersion:
    """Of the table's content: a new version of the table with the same rows is the same data."""
    from clipgen_core.data.folders import digest_of_ids

    return dg.DataVersion(f"{result.clip_key}-{digest_of_ids(result.table)}")


def _figures(result: "Result") -> dict[str, Any]:
    return {
        "embedded": result.embedded,
        "dimension": result.dim,
        "clip": result.clip,
        "clip_key": result.clip_key,
        "images_per_second": round(result.images_per_second, 2),
    }
