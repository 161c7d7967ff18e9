"""`clipgen tokens` and `clipgen evaluate`: the stages around the transformer that train nothing."""

from typing import Annotated

import typer

from clipgen_core.cli.options import Command, Name, Overrides, RecipeName, app, console
from clipgen_core.cli.train_stage import read_settings

StageRoot = Annotated[str, typer.Option("--root", envvar="CLIPGEN_ROOT", help="Where artefacts are stored.")]


@app.command(cls=Command)
def tokens(root: StageRoot, recipe: RecipeName, overrides: Overrides = None) -> None:
    """Encode the images of a root by its newest VQGAN into token shards, which train the transformer."""
    from clipgen_core.recipes import named
    from clipgen_core.stages import duplicates, tokens
    from clipgen_core.storage import Storage
    from clipgen_core.tracking import NullTracker

    chosen, out = named(recipe).override(read_settings("tokens", overrides or [])), Storage(root)
    embeddings, vqgan = (out.current(stage, "encoding images").path for stage in ("embeddings", "vqgan"))
    if chosen.tokens.exclude_duplicates is not None:
        duplicates.run(chosen.duplicates, embeddings=embeddings, out=out, tracker=NullTracker())
    result = tokens.run(
        chosen.tokens, images=out.images, embeddings=embeddings, vqgan=vqgan, out=out, tracker=NullTracker()
    )
    count = result.manifest.images_count
    console.print(
        f"{count} images are in the token shards {result.shards}; {result.encoded} were encoded now"
    )


@app.command(cls=Command)
def evaluate(
    root: StageRoot,
    recipe: RecipeName,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="A CSV with the column prompt, COCO captions, a prompt a line, or names:FOLDER; by default "
            "chosen among the classes of ImageNet."
        ),
    ] = None,
    name: Name = "clip-gen",
    overrides: Overrides = None,
) -> None:
    """Score the newest transformer of a root beside the champion, and write the report. `clipgen register`
    then registers the model."""
    from clipgen_core.cli.train import show
    from clipgen_core.recipes import named
    from clipgen_core.registry.champions import Registry
    from clipgen_core.stages import evaluation
    from clipgen_core.storage import Storage
    from clipgen_core.tracking import NullTracker, has_mlflow, registry_uri

    chosen, out = named(recipe).override(read_settings("evaluation", overrides or [])), Storage(root)
    transformer = out.current("transformer", "the evaluation").path
    registry = Registry.at(registry_uri(), out, name) if has_mlflow() else None
    champion = registry.champion() if registry else None
    result = evaluation.run(
        chosen.evaluation,
        transformer=transformer,
        images=out.images,
        prompts=prompts,
        out=out,
        tracker=NullTracker(),
        champion=registry.uri(champion) if registry and champion else None,
        model=name,
    )
    for verdict in result.verdicts:
        console.print(f"{verdict.name}: {verdict.said}")
    show(out.root)
