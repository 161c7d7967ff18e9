"""`clipgen train-stage`: one training stage from the command line, alone or under torchrun."""

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from clipgen_core.cli.options import Command, Overrides, RecipeName, app, console
from clipgen_core.errors import ClipgenError
from clipgen_core.train import TrainingStage, train


@app.command(cls=Command)
def train_stage(
    stage: Annotated[TrainingStage, typer.Argument(help="What to train.")],
    root: Annotated[str, typer.Option(envvar="CLIPGEN_ROOT", help="Where artefacts are stored.")],
    recipe: RecipeName,
    overrides: Overrides = None,
    captions: Annotated[
        str | None, typer.Option(help="For clip: a CSV file with the columns file and caption.")
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help="For vqgan: the CLIP; by default that of the latest embeddings.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="For transformer: the token shards; by default the latest.")
    ] = None,
    texts: Annotated[
        str | None, typer.Option(help="For transformer: texts like the prompts to come, one per line.")
    ] = None,
    mlflow_run: Annotated[
        str | None, typer.Option(help="Log to this MLflow run, at MLFLOW_TRACKING_URI.")
    ] = None,
) -> None:
    """Train one stage on what the stages before it left under the root, or resume where it stopped.

    On several GPUs: torchrun --nproc-per-node 8 -m clipgen_core.cli train-stage transformer ...
    """
    from clipgen_core.training import distributed

    checkpoint = train(
        stage,
        root,
        recipe,
        read_settings(stage, overrides or []),
        captions=captions,
        clip=clip,
        tokens=tokens,
        texts=texts,
        mlflow_run=mlflow_run,
    )
    if distributed.rank() == 0:
        console.print(f"{stage} is at {checkpoint}")


def read_settings(stage: str, texts: Sequence[str]) -> dict[str, Any]:
    """Settings from the command line.

    Args:
        stage: The stage that names without a stage's prefix belong to.
        texts: `name=value` each. The value is read as JSON if it is JSON, otherwise it is a string.

    Returns:
        The values by dotted name, the stage first, as `Recipe.override` takes them.

    Raises:
        ClipgenError: A text has no `=`, or is of another stage.
    """
    from clipgen_core.recipes import Recipe

    overrides: dict[str, Any] = {}
    for text in texts:
        name, value = read_value(text, "--set")
        other = name.partition(".")[0]
        if other in Recipe.model_fields and other != stage:
            raise ClipgenError(
                f"--set {text!r} is a setting of {other}, which training {stage} does not read"
            )
        overrides[name if other == stage else f"{stage}.{name}"] = value
    return overrides


def read_value(text: str, option: str) -> tuple[str, Any]:
    """A setting from the command line.

    Args:
        text: `name=value`. The value is read as JSON if it is JSON, otherwise it is a string.
        option: The option that it was given by, for the message.

    Returns:
        Name and value.

    Raises:
        ClipgenError: There is no `=`.
    """
    name, sign, value = text.partition("=")
    if not sign:
        raise ClipgenError(f"{option} {text!r} has no '=': write name=value")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
