"""Training from the command line: `clipgen train`, alone or under torchrun."""

import json
from typing import Annotated, Any, Literal

import typer

from clipgen_core import logs
from clipgen_core.errors import ClipgenError

Stage = Literal["clip", "vqgan", "transformer"]


def train(
    stage: Annotated[Stage, typer.Argument(help="What to train.")],
    root: Annotated[str, typer.Option(envvar="CLIPGEN_ROOT", help="Where artefacts live.")],
    recipe: Annotated[str, typer.Option(help="A named configuration: see clipgen_core/recipes.py.")],
    given: Annotated[
        list[str] | None, typer.Option("--set", help="A setting, e.g. train.steps=1000 (repeatable).")
    ] = None,
    captions: Annotated[str | None, typer.Option(help="For clip: a CSV with file and caption.")] = None,
    texts: Annotated[
        str | None, typer.Option(help="For transformer: texts like the prompts to come.")
    ] = None,
    mlflow_run: Annotated[
        str | None, typer.Option(help="Log to this MLflow run, at MLFLOW_TRACKING_URI.")
    ] = None,
) -> None:
    """Train one stage on what the stages before it left under the root, or go on where it stopped.

    On several GPUs: torchrun --nproc-per-node 8 -m clipgen_core.cli train transformer ...
    """
    from clipgen_core.recipes import configure
    from clipgen_core.stages import clip as clip_stage
    from clipgen_core.stages import transformer as transformer_stage
    from clipgen_core.stages import vqgan as vqgan_stage
    from clipgen_core.storage import Storage
    from clipgen_core.training import distributed

    logs.take_over()
    distributed.start()
    out, tracker = Storage(root), tracker_for(mlflow_run if distributed.rank() == 0 else None)
    config = configure(recipe, stage, dict(setting(one) for one in given or []))
    if stage == "clip":
        if captions is None:
            raise ClipgenError("training a CLIP needs captioned pictures: give --captions FILE.csv")
        made = clip_stage.run(config, captions=captions, out=out, tracker=tracker).clip
    elif stage == "vqgan":
        clip = clip_of(out)
        made = vqgan_stage.run(config, images=out.images, clip=clip, out=out, tracker=tracker).checkpoint
    else:
        shards = out.current("tokens", "training the transformer").path
        made = transformer_stage.run(config, tokens=shards, out=out, tracker=tracker, texts=texts).checkpoint
    if distributed.rank() == 0:
        typer.echo(f"{stage} is at {made}")


def setting(text: str) -> tuple[str, Any]:
    """`name=value`, the value read as JSON where it is some."""
    name, sign, value = text.partition("=")
    if not sign:
        raise ClipgenError(f"--set {text!r} has no '=': write name=value")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def clip_of(out: Any) -> str:
    """The CLIP of the current embeddings."""
    from clipgen_core.data.embeddings import EmbeddingTable

    return EmbeddingTable(out.current("embeddings", "training the VQGAN").path).clip


def tracker_for(run_id: str | None) -> Any:
    from clipgen_core.tracking import MlflowTracker, NullTracker, default_uri, mlflow_client

    return MlflowTracker(mlflow_client(default_uri()), run_id) if run_id else NullTracker()
