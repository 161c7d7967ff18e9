"""The assets `evaluation_report` and `champion`: judge the trained generator, register it, promote it.

Knows the stage's settings, results and checks, and in which order a generator is judged, registered and
marked; knows nothing of how scores are computed or where the registry keeps them.
"""

import os
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from pipelines import report
from pipelines.cluster import node
from pipelines.conditions import when_updated
from pipelines.config import StageConfig, of_stage
from pipelines.preflight import check_run
from pipelines.resources import MlflowResource, RecipeResource, StorageResource
from pipelines.upstream import artefact, upstream

if TYPE_CHECKING:
    from clipgen_core.mlflow_tracker import MlflowTracker
    from clipgen_core.registry.champions import Registry
    from clipgen_core.registry.evaluation import Evaluation

TRAINED = "trained:"
REGISTERED = "registered"


@of_stage("evaluation")
class EvaluationConfig(StageConfig):
    """Settings of the stage evaluation."""

    prompts: str | None = Field(
        default=None,
        description="A CSV file with the column prompt, COCO captions, a text file with one prompt per "
        "line, an images table, for the captions of its held-out images, or names:FOLDER, for what the "
        "names of image files and their folders say. Null: what CLIPGEN_PROMPTS names; without it, the "
        "ImageNet classes that the training images are nearest to.",
    )
    judge: str | None = Field(
        default=None,
        description="CLIP that computes the scores: hub:MODEL/PRETRAINED, local-dir:FOLDER, or trained:ROOT "
        "for the CLIP that clip_training left under a root. Null: the CLIP that the model is conditioned on, "
        "which flatters the model.",
    )

    def judge_reference(self) -> str | None:
        """The CLIP that judges, as ClipEncoder takes it; None for the conditioning CLIP."""
        from clipgen_core.storage import Storage

        if self.judge and self.judge.startswith(TRAINED):
            return Storage(self.judge.removeprefix(TRAINED)).current("clip", "the judge").path
        return self.judge

    def named_prompts(self) -> str | None:
        """Where the prompts are; None if the evaluation chooses its own."""
        return self.prompts or os.environ.get("CLIPGEN_PROMPTS") or None


@dg.asset(
    group_name="evaluation",
    kinds={"mlflow", "html"},
    owners=["team:research"],
    code_version="1",
    deps=["transformer_checkpoint", "raw_images"],
    pool="gpu",
    op_tags=node("evaluation", memory=16),
    automation_condition=when_updated("transformer_checkpoint"),
    check_specs=[
        *report.thresholds("evaluation_report"),
        dg.AssetCheckSpec(REGISTERED, asset="evaluation_report", description="MLflow has the model."),
    ],
)
def evaluation_report(
    context: dg.AssetExecutionContext,
    config: EvaluationConfig,
    storage: StorageResource,
    recipe: RecipeResource,
    mlflow: MlflowResource,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Images and scores, compared with the champion's; the generator becomes clip-gen@candidate."""
    from clipgen_core.registry.candidates import CONDITIONING
    from clipgen_core.stages import evaluation

    check_run(context, storage=storage, recipe=recipe, mlflow=mlflow)
    out = storage.open()
    transformer = upstream(context, out, "transformer")
    stage = recipe.override(config.overrides() | {"evaluation.judge": config.judge_reference()}).evaluation
    with mlflow.run(context, {"transformer": transformer.digest}) as tracker:
        versions = mlflow.registry(context, out)
        champion = versions.champion()
        result = evaluation.run(
            stage,
            transformer=transformer.path,
            images=out.images,
            prompts=config.named_prompts(),
            out=out,
            tracker=tracker,
            champion=versions.uri(champion) if champion else None,
            model=versions.name,
        )
        registered = _register(context, versions, result.evaluation, tracker)
    return dg.MaterializeResult(
        metadata={
            **artefact(out, result.report, result.digest),
            "report": dg.MetadataValue.path(result.report),
            **mlflow.links(tracker, report_page="report.html"),
            **registered.metadata,
            "compared_with": f"version {champion}" if champion else "none",
            "judge": stage.judge or CONDITIONING,
            "grid": report.picture(result.grid),
            **report.figures(result.metrics),
        },
        data_version=dg.DataVersion(result.digest),
        check_results=[*report.verdicts(result.verdicts, stage.thresholds), registered],
    )


def _register(
    context: dg.AssetExecutionContext, versions: "Registry", judged: "Evaluation", tracker: "MlflowTracker"
) -> dg.AssetCheckResult:
    """Register the judged generator. If MLflow does not take it, the report stays; `champion` tries again."""
    from clipgen_core.tracking import why

    try:
        version = versions.register_evaluated(judged, tracker)
    except Exception as error:
        said = (
            f"the report is at {judged.report}, but the model is not registered ({why(error)}): the asset "
            "champion, or `clipgen register`, does it without evaluating again"
        )
        context.log.warning(said, exc_info=True)
        return dg.AssetCheckResult(
            check_name=REGISTERED, passed=False, severity=dg.AssetCheckSeverity.WARN, description=said
        )
    metadata = {"model": f"models:/{versions.name}/{version}", "model_version": version}
    return dg.AssetCheckResult(check_name=REGISTERED, passed=True, metadata=metadata)


@dg.asset(
    group_name="evaluation",
    kinds={"mlflow"},
    owners=["team:research"],
    code_version="1",
    deps=["evaluation_report"],
    automation_condition=when_updated("evaluation_report"),
)
def champion(
    context: dg.AssetExecutionContext, storage: StorageResource, mlflow: MlflowResource
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """clip-gen@champion, moved to the candidate when every check of its evaluation passed."""
    versions = mlflow.registry(context, storage.open())
    versions.require_own()
    if waiting := versions.waiting():
        with mlflow.run(context, {"evaluation": waiting.folder}) as tracker:
            versions.register_evaluated(waiting, tracker)
    promotion = versions.promote()
    return dg.MaterializeResult(
        metadata={
            "model": f"models:/{versions.name}@champion",
            "version": promotion.version,
            "before": promotion.before or "none",
            "promotion": promotion.number,
            "dagster/uri": f"models:/{versions.name}@champion",
        },
        data_version=dg.DataVersion(promotion.version),
    )
