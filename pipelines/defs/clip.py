"""The asset `clip_checkpoint`: a small CLIP of one's own.

Knows the stage's settings and results; knows nothing of how a CLIP is trained, nor of who uses it.
"""

import dagster as dg
from pydantic import Field

from pipelines import report
from pipelines.cluster import node
from pipelines.config import TrainingConfig, of_stage
from pipelines.launch import train_in_processes
from pipelines.preflight import check_run
from pipelines.resources import MlflowResource, RecipeResource, StorageResource
from pipelines.upstream import artefact


@of_stage("clip")
class ClipCheckpointConfig(TrainingConfig):
    """Settings of the stage clip, and where it is trained."""

    captions: str = Field(
        description="A CSV file with the columns file and caption, or an images table with captions, such as "
        "ROOT/images.lance."
    )


@dg.asset(
    group_name="embeddings",
    kinds={"pytorch"},
    owners=["team:research"],
    code_version="1",
    pool="gpu",
    op_tags=node("clip", memory=32),
)
def clip_checkpoint(
    context: dg.AssetExecutionContext,
    config: ClipCheckpointConfig,
    storage: StorageResource,
    recipe: RecipeResource,
    mlflow: MlflowResource,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """A small CLIP trained on captioned images, where no public CLIP fits; open_clip's local-dir format."""
    from clipgen_core.stages import clip

    check_run(context, storage=storage, recipe=recipe, mlflow=mlflow)
    stage, out = recipe.override(config.overrides()).clip, storage.open()
    training = [out.root, stage.model_dump(mode="json")]
    with mlflow.run(context, {"captions": config.captions}, training) as tracker:
        train_in_processes("clip", config, recipe, out, tracker, captions=config.captions)
        result = clip.run(stage, captions=config.captions, out=out, tracker=tracker)
    return dg.MaterializeResult(
        metadata={
            **artefact(out, result.clip, result.clip_key),
            **mlflow.links(tracker),
            "images": result.images,
            "captions": result.captions,
            "checkpoint": dg.MetadataValue.path(result.fitted.checkpoint),
            **report.fitted(result.fitted),
            **report.warm_start(result.started_from, result.fitted),
        },
        data_version=dg.DataVersion(result.clip_key),
    )
