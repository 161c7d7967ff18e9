"""What MLflow keeps of a version of the model: its files, the tags and the text of its judgement."""

from collections.abc import Mapping
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Protocol

from clipgen_core.extras import packages_of
from clipgen_core.generation.parts import read_parts
from clipgen_core.judging.checks import Verdict
from clipgen_core.mlflow_tracker import MlflowTracker
from clipgen_core.models.clip_files import needs_transformers

EXAMPLE = ["a red heart"]
# Of sampling, that a request may set.
PARAMS = ("candidates", "condition", "guidance_scale", "steps", "temperature", "top_k", "top_p")
SCORE, CHECK = "score.", "check."  # tags of a judgement


class Evaluated(Protocol):
    """What an evaluation left: where its report is, its metrics and its checks."""

    @property
    def report(self) -> str: ...

    @property
    def metrics(self) -> dict[str, float]: ...

    @property
    def verdicts(self) -> list[Verdict]: ...


def description(metrics: Mapping[str, float], judge: str) -> str:
    """The headline metrics as a Markdown table, for MLflow's page of the version.

    Args:
        metrics: Of an evaluation.
        judge: The CLIP that computed the scores.

    Returns:
        Markdown.
    """
    lines = [
        "| prompts | CLIP score | recall@5 | real images: CLIP score | recall@5 |",
        "|---|---|---|---|---|",
    ]
    for split in (name.removesuffix("/prompts") for name in metrics if name.endswith("/prompts")):
        keys = [
            f"{split}/{kind}/{score}"
            for kind in ("generated", "real")
            for score in ("clip_score", "recall@5")
        ]
        lines.append("| " + " | ".join([split, *(f"{metrics[key]:.3f}" for key in keys)]) + " |")
    return "\n".join([*lines, "", f"Scored by {judge}. The tag `report` says where the report is."])


def judgement(judged: "Evaluated") -> dict[str, str]:
    """The scores and checks of a judgement as tags of a version."""
    scores = {f"{SCORE}{name.replace('@', '_at_')}": f"{v:.6g}" for name, v in judged.metrics.items()}
    return scores | {f"{CHECK}{one.name}": one.said for one in judged.verdicts}


def log_model(generator: Path, params: dict[str, Any], tracker: MlflowTracker) -> str:
    """Log a generator as an MLflow model.

    Models from code: MLflow stores `registered_model.py` as text and runs it when loading; no object is
    pickled. The signature comes from the types of `predict` and from the example's parameters, the defaults.

    Args:
        generator: Its folder.
        params: Sampling parameters that a request may set, with their defaults.
        tracker: The run that gets the files.

    Returns:
        The URI of the logged model.
    """
    import mlflow

    package = Path(__file__).parents[1]
    mlflow.set_tracking_uri(tracker.client.tracking_uri)
    with mlflow.start_run(run_id=tracker.run_id):
        logged = mlflow.pyfunc.log_model(
            name="generator",
            python_model=str(Path(__file__).with_name("registered_model.py")),
            artifacts={"generator": str(generator)},
            code_paths=[str(package)],
            pip_requirements=requirements(read_parts(str(generator)).clip),
            input_example=(EXAMPLE, params),
        )
    return str(logged.model_uri)


def requirements(clip: str) -> list[str]:
    """What a registered model needs to run, at the versions of this environment; MLflow adds itself.

    Args:
        clip: The reference of its CLIP.

    Returns:
        Lines of a requirements file. A build's label, as in 2.14.1+cpu, is left out: package indexes lack it.
    """
    extras = ["siglip"] if needs_transformers(clip) else []
    packages = [one for one in packages_of(*extras) if one != "mlflow-skinny"]
    return [f"{package}=={version_of(package).partition('+')[0]}" for package in packages]
