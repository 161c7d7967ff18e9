import dagster as dg
from pydantic import Field

from pipelines import report
from pipelines.cluster import node
from pipelines.config import TrainingConfig, of_stage
from pipelines.launch import train_in_processes
from pipelines.resources import MlflowResource, RecipeResource, StorageResource


@of_stage("clip")
class ClipCheckpointConfig(TrainingConfig):
    """Settings of the stage clip, and where it is trained."""

    captions: str = Field(description="A CSV file with the columns file and caption.")


@dg.asset(
    group_name="embeddings",
    kinds={"pytorch"},
    owners=["team:research"],
    pool="gpu",
    op_tags=node(memory="32Gi", gpu=True),
)
def clip_checkpoint(
    context: dg.AssetExecutionContext,
    config: ClipCheckpointConfig,
    storage: StorageResource,
    recipe: RecipeResource,
    mlflow: MlflowResource,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """A small CLIP from captioned pictures, only where no public one fits; open_clip's local-dir format."""
    from clipgen_core.stages import clip

    stage, out = recipe.override(config.overrides()).clip, storage.open()
    with mlflow.run(context, {"captions": config.captions}) as tracker:
        train_in_processes("clip", config, recipe, out, tracker, captions=config.captions)
        result = clip.run(stage, captions=config.captions, out=out, tracker=tracker)
    return dg.MaterializeResult(
        metadata={
            "clip": result.clip,
            "clip_key": result.clip_key,
            "pictures": result.pictures,
            "captions": result.captions,
            "mlflow_run": tracker.run_id,
            **mlflow.links(tracker),
            **report.fitted(result.fitted),
        },
        data_version=dg.DataVersion(result.clip_key),
    )
