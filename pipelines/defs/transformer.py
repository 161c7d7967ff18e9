"""The asset `transformer_checkpoint`: the model that generates codes from a CLIP embedding.

Knows the stage's settings, results and when it is worth training again; knows nothing of how it is trained.
"""

import math

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


@of_stage("transformer")
class TransformerCheckpointConfig(TrainingConfig):
    """Settings of the stage transformer, and where it is trained."""

    texts: str | None = Field(
        default=None,
        description="A file of texts like the prompts to come, one per line. Null: ImageNet's class names.",
    )


@dg.asset(
    group_name="transformer",
    kinds={"pytorch"},
    owners=["team:research"],
    code_version="1",
    deps=["token_shards"],
    pool="gpu",
    op_tags=node("transformer", memory=32),
    automation_condition=settled(Grown(upstream="token_shards", share=0.2)),
    check_specs=[
        dg.AssetCheckSpec(
            "better_than_uniform",
            asset="transformer_checkpoint",
            description="The validation loss is below that of guessing each code. It warns only.",
        )
    ],
)
def transformer_checkpoint(
    context: dg.AssetExecutionContext,
    config: TransformerCheckpointConfig,
    storage: StorageResource,
    recipe: RecipeResource,
    mlflow: MlflowResource,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """The transformer that generates codes from a CLIP embedding."""
    from clipgen_core.data.tokens import read_manifest
    from clipgen_core.stages import transformer

    check_run(context, storage=storage, recipe=recipe, mlflow=mlflow)
    out = storage.open()
    shards = upstream(context, out, "tokens")
    manifest = read_manifest(shards.path)
    stage = recipe.override(config.overrides()).transformer
    training = [out.root, stage.model_dump(mode="json")]
    with mlflow.run(context, {"tokens": shards.digest}, training) as tracker:
        train_in_processes(
            "transformer", config, recipe, out, tracker, tokens=shards.path, texts=config.texts
        )
        result = transformer.run(stage, tokens=shards.path, out=out, tracker=tracker, texts=config.texts)
    loss, uniform = result.fitted.metrics["validation_loss"], math.log(manifest.codebook_size)
    return dg.MaterializeResult(
        metadata={
            **artefact(out, result.checkpoint, result.digest),
            **mlflow.links(tracker),
            "parameters": result.parameters,
            TRAINED_ON: manifest.rows,
            "validation_curve": report.curve(result.fitted.history, "validation_loss"),
            **transformer.upstream_tags(manifest),
            **report.fitted(result.fitted),
            **report.warm_start(result.started_from, result.fitted),
        },
        data_version=dg.DataVersion(result.digest),
        check_results=[
            report.check(
                "better_than_uniform",
                loss < uniform,
                f"the validation loss is {loss:.3f}, and guessing has {uniform:.3f}: train longer",
                advisory=True,
                validation_loss=loss,
                below=uniform,
            )
        ],
    )
