"""`clipgen plan`: what a training will take, before it starts."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from clipgen_core.cli.options import Command, Overrides, RecipeName, app, console
from clipgen_core.cli.train_stage import read_value
from clipgen_core.progress import duration

if TYPE_CHECKING:
    from clipgen_core.plan import Line
    from clipgen_core.plan.verdict import Verdict

NAMES = {  # of the assets
    "clip_checkpoint": "CLIP",
    "raw_images": "images",
    "clip_embeddings": "embeddings",
    "vqgan_checkpoint": "VQGAN",
    "token_shards": "token shards",
    "transformer_checkpoint": "transformer",
}
PARTS = {  # of a Need, and what they are called
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "average": "average of the weights",
    "frozen": "frozen models",
    "batches": "loaded batches",
    "activations": "activations of a pass",
    "context": "CUDA",
}


@app.command(cls=Command)
def plan(
    folder: Annotated[str, typer.Argument(help="A folder of images, or an fsspec URL.")],
    recipe: RecipeName,
    clip: Annotated[
        str | None, typer.Option(help="The CLIP to use; `trained`: the recipe's own; ViT-B/32 by default.")
    ] = None,
    overrides: Overrides = None,
    gpu: Annotated[
        float | None, typer.Option(min=1, help="Count for a GPU of so many GB instead of this machine.")
    ] = None,
) -> None:
    """Estimate what training on a folder takes: images, disk, memory, time. Writes nothing."""
    from clipgen_core.plan import plan
    from clipgen_core.recipes import named

    chosen = named(recipe).override(dict(read_value(text, "-o") for text in overrides or []))
    estimate = plan(folder, chosen, clip, gpu * 1e9 if gpu else None)
    seen = estimate.source
    console.print(
        f"{seen.files} files, about {seen.images} images, {seen.usable:.0%} usable, "
        f"{seen.mean_side:.0f} px a side; {estimate.device}"
    )
    console.print(stages(estimate.lines), "", memory(estimate.verdicts), "")
    if gpu is None:
        console.print(
            "The times are of this machine, and lower bounds: reading data and validations come on top."
        )
    else:
        console.print("The times are not known: they are measured where this runs, without --gpu.")
    for asset, verdict in estimate.verdicts.items():
        console.print(sentence(NAMES[asset], verdict, estimate.memory))


def stages(lines: Sequence["Line"]) -> Table:
    """The needs of each stage, and of all together."""
    sheet = Table("stage", *(Column(name, justify="right") for name in ("disk", "memory", "time")), box=None)
    for line in lines:
        sheet.add_row(NAMES[line.stage], gigabytes(line.disk), gigabytes(line.memory), hours(line.hours))
    disk, memory = sum(line.disk for line in lines), max(line.memory for line in lines)
    sheet.add_row("in all", gigabytes(disk), gigabytes(memory), hours(sum(line.hours for line in lines)))
    return sheet


def memory(verdicts: Mapping[str, "Verdict"]) -> Table:
    """What the memory of each training is used for."""
    sheet = Table("memory of", *(Column(NAMES[asset], justify="right") for asset in verdicts), box=None)
    needs = [verdict.need for verdict in verdicts.values()]
    for part, name in PARTS.items():
        sheet.add_row(name, *(gigabytes(getattr(need, part)) for need in needs))
    sheet.add_row("images in a pass", *(str(need.images) for need in needs))
    sheet.add_row("activations an image", *(gigabytes(need.per_image) for need in needs))
    return sheet


def sentence(name: str, verdict: "Verdict", memory: float) -> str:
    """Whether a training fits, and what to set if it does not.

    Args:
        name: What is trained.
        verdict: The verdict.
        memory: Bytes of the device.

    Returns:
        A sentence.
    """
    room = f"{memory / 1e9:.3g} GB"
    if verdict.fits:
        return f"The {name} fits {room}: it needs {gigabytes(verdict.need.total)}."
    said = f"The {name} does not fit {room} with a tenth to spare: it needs {gigabytes(verdict.need.total)}"
    if not verdict.overrides:
        return f"{said}, and no setting is enough: choose a smaller recipe, or fsdp on several GPUs."
    given = " ".join(f"-o {name}={json.dumps(value)}" for name, value in verdict.overrides.items())
    return f"{said}. With {given} it needs {gigabytes(verdict.then.total)}, and trains the same."


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size else "-"


def hours(known: float) -> str:
    return duration(known) if known else "-"
