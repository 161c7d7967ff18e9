"""Commands about models: published weights, and the registry."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from pydantic import JsonValue
from rich.table import Table
from rich.text import Text

from clipgen_core.cli.options import Command, Model, Name, Root, app, console, last_model
from clipgen_core.cli.sheets import require_writable
from clipgen_core.errors import ClipgenError
from clipgen_core.filesystem import is_local, list_folder
from clipgen_core.schema import LOCAL
from clipgen_core.storage import ASSETS, Storage, last_root

if TYPE_CHECKING:
    from clipgen_core.published.generator import Imported
    from clipgen_core.registry.champions import Registry

Kind = Literal["taming", "llamagen", "ibq", "clip-gen"]
ImportRoot = Annotated[str, typer.Option("--root", envvar="CLIPGEN_ROOT", help="Where artefacts live.")]
Heads = Annotated[
    int | None, typer.Option(min=1, help="Attention heads; by default those of the published sizes.")
]


@app.command(cls=Command, name="import-clip")
def import_clip(
    file: Annotated[Path, typer.Argument(help="The weights: safetensors, or a state dict of PyTorch.")],
    reference: Annotated[str, typer.Option("--is", help="Which CLIP they are, as hub:MODEL/PRETRAINED.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to write.")],
) -> None:
    """Make a folder that --clip takes of CLIP weights that were downloaded on another machine."""
    from clipgen_core.published import clip

    clip.import_clip(file, reference, output)
    console.print(f"try: clipgen train FOLDER --clip {LOCAL}{output}")


@app.command(cls=Command, name="import-vqgan")
def import_vqgan(
    kind: Annotated[Kind, typer.Argument(help="Whose weights they are.")],
    file: Annotated[Path, typer.Argument(help="The published checkpoint file.")],
    root: ImportRoot,
    image_size: Annotated[
        int, typer.Option(min=1, help="Side of the images it will be used for, at most 2048 pixels.")
    ] = 256,
) -> None:
    """Make a published VQGAN the current one of a root; to fine-tune it, set vqgan.start_from."""
    from clipgen_core.published import generator

    _show_start("vqgan", root, generator.import_vqgan(kind, file, Storage(root), image_size))


@app.command(cls=Command, name="import-transformer")
def import_transformer(
    kind: Annotated[Literal["llamagen"], typer.Argument(help="Whose weights they are.")],
    file: Annotated[Path, typer.Argument(help="The published checkpoint file.")],
    root: ImportRoot,
    clip: Annotated[str, typer.Option(help="The CLIP that it will be trained with.")],
    heads: Heads = None,
) -> None:
    """Import a transformer for the root's imported VQGAN; to train it, set transformer.start_from."""
    from clipgen_core.published import generator

    _show_start("transformer", root, generator.import_transformer(file, Storage(root), clip, heads))


@app.command(cls=Command, name="import-generator")
def import_generator(
    vqgan: Annotated[Path, typer.Argument(help="The public implementation's vqgan_coco.pt.")],
    transformer: Annotated[Path, typer.Argument(help="Its gpt_coco.pt.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The generator folder to write.")],
    clip: Annotated[
        str, typer.Option(help="The CLIP it was trained with.")
    ] = "hub:ViT-B-32-quickgelu/openai",
    heads: Heads = None,
) -> None:
    """Convert the public CLIP-GEN weights to a generator folder: 256 px, trained on MS-COCO."""
    from clipgen_core.published import generator

    generator.import_generator(vqgan, transformer, clip, output, heads)
    console.print(f"try: clipgen generate 'a city bus' -m {output}")


@app.command(cls=Command)
def export(
    output: Annotated[
        str, typer.Option("-o", "--output", help="The file to write, such as model.clipgen, or the folder.")
    ],
    model: Model = None,
    root: Root = None,
    layout: Annotated[
        Literal["file", "huggingface"],
        typer.Option(help="One file, or a folder to upload to the Hugging Face Hub."),
    ] = "file",
    weights: Annotated[
        Literal["bf16", "int8"], typer.Option(help="int8 takes half the space, at some loss.")
    ] = "bf16",
    name: Annotated[
        str | None, typer.Option("--name", help="Of the model; by default its registered name or OUTPUT.")
    ] = None,
) -> None:
    """Write a model as one file to share, which generate, edit and the page take as --model."""
    from clipgen_core.generation.export import export_file, export_folder
    from clipgen_core.generation.parts import read_parts
    from clipgen_core.generation.sources import REGISTRY, folder_of
    from clipgen_core.tracking import describe

    if layout == "file" and is_local(output):
        require_writable(Path(output), ".clipgen")
    source = model or last_model(root)
    registered, _, version = source.removeprefix(REGISTRY).replace("@", "/").partition("/")
    if source.startswith(REGISTRY):
        version = describe(source)["version"]
    else:
        registered, version = Path(output).stem, ""
    parts, write = read_parts(folder_of(source)), {"file": export_file, "huggingface": export_folder}[layout]
    write(parts, output, name=name or registered, version=version or None, weights=weights)
    console.print(f"try: clipgen generate 'a red heart' -m {shlex.quote(output)}")


@app.command(cls=Command)
def champions(
    root: Root = None,
    name: Name = "clip-gen",
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Heal what MLflow lost: go back to a champion that it has, set aliases."
        ),
    ] = False,
) -> None:
    """Show which versions of the registered model were champion; the last one is in use."""
    registry = _registry(root, name)
    if repair:
        console.print("\n".join(registry.repair()) or "nothing is to be repaired")
    sheet = Table("", "version", "instead of", "by", "at", box=None)
    for row in registry.history():
        when = f"{row.at:%Y-%m-%d %H:%M} UTC"
        sheet.add_row(str(row.number), row.version or "none", row.before or "-", row.reason, when)
    console.print(sheet if sheet.row_count else registry.without_history())


@app.command(cls=Command)
def register(root: Root = None, name: Name = "clip-gen") -> None:
    """Register the model of the newest evaluation, without evaluating again: for when MLflow was away, or is
    a new one."""
    from clipgen_core.mlflow_tracker import mlflow_run
    from clipgen_core.tracking import default_uri

    registry = _registry(root, name, default_uri())
    registry.require_own()
    evaluation, uri = registry.newest_evaluation(), registry.client.tracking_uri
    with mlflow_run("register", tracking_uri=uri, artifacts=None, tags={}) as tracker:
        version = registry.register_evaluated(evaluation, tracker)
    console.print(f"{name}@candidate is version {version}; its report is {evaluation.report}")


@app.command(cls=Command)
def promote(
    version: Annotated[str | None, typer.Argument(help="A version; by default the candidate.")] = None,
    root: Root = None,
    name: Name = "clip-gen",
) -> None:
    """Make a version champion, if it passed every check against today's champion. Naming the version accepts
    checks that were not measured."""
    registry = _registry(root, name)
    known, promotion = len(registry.history()), registry.promote(version)
    said = f"before: {promotion.before or 'none'}" if promotion.number > known else "as it was before"
    console.print(f"{name}@champion is version {promotion.version} ({said})")


@app.command(cls=Command)
def rollback(root: Root = None, name: Name = "clip-gen") -> None:
    """Make the previous champion the champion again; the two change places."""
    promotion = _registry(root, name).rollback()
    console.print(f"{name}@champion is version {promotion.version} again (before: {promotion.before})")


@app.command(cls=Command)
def lineage(
    model: Annotated[str, typer.Argument(help="models:/clip-gen@champion, or models:/clip-gen/VERSION.")],
    root: Annotated[
        str | None, typer.Option(help="Where its root lies now, if it was moved since the registration.")
    ] = None,
) -> None:
    """Print what a registered model was made from, back to the images it was trained on."""
    from clipgen_core.registry.lineage import way_back
    from clipgen_core.tracking import describe

    if not model.startswith("models:/"):
        raise ClipgenError(
            f"{model} is no registered model: give its address in the registry, models:/NAME@ALIAS or "
            "models:/NAME/VERSION"
        )
    tags = describe(model)
    console.print(f"{model} is version {tags['version']}, run {tags.get('mlflow_run', '?')}")
    own = Storage(root).root if root else None
    for step in way_back(tags, own):  # one line each, however long, so that addresses can be copied
        line = Text(f"{step.name:<12} {step.digest or '-':<28} {step.where}")
        console.print(line if step.there else line.append("  (gone)", style="red"))
    for key, said in sorted(tags.items()):
        if key.startswith("check."):
            console.print(f"{key.removeprefix('check.')}: {said}")


def _show_start(stage: str, root: str, imported: "Imported") -> None:
    """Print the settings that start a training from imported weights, for the recipe with the fewest."""
    from clipgen_core.recipes import RECIPES
    from clipgen_core.settings.catalogue import flatten, nested

    def settings(name: str) -> dict[str, JsonValue]:
        shape = flatten(getattr(RECIPES[name], stage).model.model_dump(mode="json"))
        needed = flatten(imported.model.model_dump(mode="json"))
        return {key: value for key, value in needed.items() if value != shape.get(key)}

    recipe = min(RECIPES, key=lambda name: len(settings(name)))
    needed = {"start_from": imported.url} | {f"model.{key}": value for key, value in settings(recipe).items()}
    console.print(f"the {stage} is at {imported.url}\nto start a training from it:")
    console.print(f"  clipgen train-stage {stage} --root {shlex.quote(root)} --recipe {recipe} \\")
    given = [f"{key}={value if isinstance(value, str) else _compact(value)}" for key, value in needed.items()]
    console.print(" \\\n".join(f"    --set {shlex.quote(one)}" for one in given))
    console.print(f"or, in a run config of the recipe {recipe}, in the config of {ASSETS[stage][0]}:")
    for key, value in nested(needed).items():
        console.print(f"  {key}: {json.dumps(value)}")


def _compact(value: JsonValue) -> str:
    """JSON without spaces, which is one word in a shell."""
    return json.dumps(value, separators=(",", ":"))


def _registry(root: str | None, name: str, address: str | None = None) -> "Registry":
    from clipgen_core.registry.champions import Registry
    from clipgen_core.tracking import registry_uri

    out = Storage(root or last_root("evaluation"))
    if root and not list_folder(out.root):  # else a table of champions would begin there
        raise ClipgenError(f"there is nothing at {out.root}: name the root of the model by --root")
    return Registry.at(address or registry_uri(), out, name)
