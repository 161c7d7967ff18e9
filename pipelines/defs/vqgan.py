"""The asset `vqgan_checkpoint`: the model that turns images into codes and back.

Knows the stage's settings, results and when it is worth training again; knows nothing of how it is trained.
"""

import dagster as dg
from pydantic import Field

from pipelines import report
from pipelines.cluster import node
from pipelines.conditions import TRAINED_ON, Grown, settled
from pipelines.config import TrainingConfig, of_stage
from pipelines.launch import train_in_processes
from pipelines.preflight import check_run
from pipelines.resources import MlflowResource, RecipeResource, StorageResource
from pipelines.upstream import artefact, upstream


@of_stage("vqgan")
class VqganCheckpointConfig(TrainingConfig):
    """Settings of the stage vqgan, and where it is trained."""

    min_codebook_usage: float = Field(
        default=0.5, description="Smallest share of codes in use that passes the check codebook_usage."
    )


@dg.asset(
    group_name="vqgan",
    kinds={"pytorch"},
    owners=["team:research"],
    code_version="1",
    deps=["raw_images", "clip_embeddings"],
    pool="gpu",
    op_tags=node("vqgan", memory=32),
    automation_condition=settled(Grown(upstream="raw_images", share=0.5)),
    check_specs=[
        dg.AssetCheckSpec(
            "codebook_usage",
            asset="vqgan_checkpoint",
            description="At least min_codebook_usage of the codes are in use. It warns only.",
        )
    ],
)
def vqgan_checkpoint(
    context: dg.AssetExecutionContext,
    config: VqganCheckpointConfig,
    storage: StorageResource,
    recipe: RecipeResource,
    mlflow: MlflowResource,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """The VQGAN that turns images into a grid of discrete codes and back."""
    from clipgen_core.data.embeddings import EmbeddingTable
    from clipgen_core.stages import vqgan

    check_run(context, storage=storage, recipe=recipe, mlflow=mlflow)
    out = storage.open()
    table = upstream(context, out, "embeddings")
    clip = EmbeddingTable(table.path).clip
    stage = recipe.override(config.overrides()).vqgan
    training = [out.root, stage.model_dump(mode="json")]
    with mlflow.run(context, {"embeddings": table.digest}, training) as tracker:
        train_in_processes("vqgan", config, recipe, out, tracker, clip=clip)
        result = vqgan.run(stage, images=out.images, clip=clip, out=out, tracker=tracker)
    usage, least = result.fitted.metrics["codebook_usage"], config.min_codebook_usage
    return dg.MaterializeResult(
        metadata={
            **artefact(out, result.checkpoint, result.digest),
            **mlflow.links(tracker),
            TRAINED_ON: result.images_total,
            "where": stage.where or "all images",
            "images_selected": result.images,
            "images_total": result.images_total,
            "psnr_curve": report.curve(result.fitted.history, "psnr"),
            **report.fitted(result.fitted),
            **report.warm_start(result.started_from, result.fitted),
        },
        data_version=dg.DataVersion(result.digest),
        check_results=[
            report.check(
                "codebook_usage",
                usage >= least,
                f"{usage:.0%} of the codes are in use, less than {least:.0%}: see docs/operations.md",
                advisory=True,
                usage=usage,
                at_least=least,
            )
        ],
    )
