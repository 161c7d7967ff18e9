import dagster as dg
from pydantic import Field

from pipelines import report
from pipelines.config import StageConfig
from pipelines.resources import MlflowResource, RecipeResource, StorageResource

MODEL, ALIAS = "clip-gen", "candidate"
TRAINED = "trained:"


class EvaluationConfig(StageConfig):
    prompts: str = Field(description="A CSV with the column prompt; file and split are optional.")
    judge: str | None = Field(
        default=None,
        description="A CLIP that did not condition the model, to score with; trained:ROOT takes the one "
        "that clip_training left under a root; the conditioning CLIP if unset.",
    )


@dg.asset(
    group_name="evaluation",
    kinds={"mlflow", "html"},
    owners=["team:research"],
    deps=["transformer_checkpoint", "raw_images"],
    pool="gpu",
)
def evaluation_report(
    context: dg.AssetExecutionContext,
    config: EvaluationConfig,
    storage: StorageResource,
    recipe: RecipeResource,
    mlflow: MlflowResource,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """A page of pictures and scores; the generator goes to MLflow's registry as clip-gen@candidate."""
    from clipgen_core.stages import evaluation
    from clipgen_core.storage import Storage

    out = storage.open()
    transformer = out.current("transformer", "evaluation_report")
    judge = config.judge
    if judge and judge.startswith(TRAINED):
        judge = Storage(judge.removeprefix(TRAINED)).current("clip", "the judge").path
    stage = recipe.stage("evaluation", {"judge": judge, **config.all_overrides()})
    with mlflow.run(context, {"transformer": transformer.digest}) as tracker:
        result = evaluation.run(
            stage,
            transformer=transformer.path,
            images=out.images,
            prompts=config.prompts,
            out=out,
            tracker=tracker,
        )
        version = evaluation.register(transformer.path, result, tracker, name=MODEL, alias=ALIAS)
    return dg.MaterializeResult(
        metadata={
            "report": dg.MetadataValue.path(result.report),
            "model": f"models:/{MODEL}@{ALIAS}",
            "model_version": version,
            "mlflow_run": tracker.run_id,
            "grid": report.picture(result.grid),
            **{name: round(value, 4) for name, value in result.metrics.items()},
        },
        data_version=dg.DataVersion(result.digest),
    )
