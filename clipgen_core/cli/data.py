"""Commands that take pictures in, and say what is there."""

from typing import Annotated

import typer
from rich.table import Column, Table

from clipgen_core.cli.options import Command, Root, app, console
from clipgen_core.storage import Storage, last_root


@app.command(cls=Command)
def embed(
    folder: Annotated[str, typer.Argument(help="A folder of pictures, or an fsspec URL.")],
    root: Root = None,
    clip: Annotated[
        str | None,
        typer.Option(help="hub:MODEL/PRETRAINED or local-dir:FOLDER; by default the last trained CLIP."),
    ] = None,
    retry_rejects: Annotated[
        bool, typer.Option(help="Read files again that had unusable pictures before.")
    ] = False,
) -> None:
    """Take in a folder of pictures and embed those that are new."""
    from clipgen_core.stages import embeddings, images
    from clipgen_core.tracking import NullTracker

    storage = Storage(root or last_root("clip"))
    reference = clip or storage.current("clip", "embedding without --clip").path
    taken = images.run(
        images.Config(retry_rejects=retry_rejects), source=folder, out=storage, tracker=NullTracker()
    )
    made = embeddings.run(
        embeddings.Config(), images=taken.table, clip=reference, out=storage, tracker=NullTracker()
    )
    console.print(f"{taken.found} pictures found, {taken.added} new, {taken.total} in all")
    for gone in taken.vanished:
        console.print(f"the folder {gone} is gone: its rows stay until `clipgen prune`")
    for reason, count in sorted(taken.rejects.items()):
        console.print(f"{count} rejected: {reason} (see {storage.rejects})")
    console.print(f"{made.embedded} embedded in {made.table}")


@app.command(cls=Command)
def plan(
    folder: Annotated[str, typer.Argument(help="A folder of pictures, or an fsspec URL.")],
    recipe: Annotated[
        str, typer.Option("--recipe", "--preset", help="demo, paper, b, l or xl: see the README.")
    ],
    clip: Annotated[
        str | None, typer.Option(help="The CLIP to time; the shape of ViT-B/32 if none is named.")
    ] = None,
) -> None:
    """Say what a training on a folder would take here: pictures, disk, memory, hours. Writes nothing."""
    from clipgen_core.plan import plan
    from clipgen_core.recipes import named

    made = plan(folder, named(recipe), clip)
    console.print(
        f"{made.files} files, about {made.images} pictures, {made.usable:.0%} usable, "
        f"{made.mean_side:.0f} px a side; {made.device}"
    )
    sheet = Table("stage", *(Column(name, justify="right") for name in ("disk", "memory", "hours")), box=None)
    for line in made.lines:
        sheet.add_row(line.stage, gigabytes(line.disk), gigabytes(line.memory), f"{line.hours:.3g}")
    total = sum(line.disk for line in made.lines), max(line.memory for line in made.lines)
    sheet.add_row("in all", *map(gigabytes, total), f"{sum(line.hours for line in made.lines):.3g}")
    console.print(sheet)


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size else "-"


@app.command(cls=Command)
def folders(root: Root = None) -> None:
    """Show the top-level folders that pictures were taken from, and how many each has."""
    from clipgen_core.data.tables import open_table, scan

    storage = Storage(root or last_root("embeddings"))
    counts: dict[str, int] = {}
    for batch in scan(open_table(storage.images), ["folder"]):
        for folder in batch["folder"].to_pylist():
            counts[folder] = counts.get(folder, 0) + 1
    sheet = Table(Column("folder", overflow="fold"), Column("pictures", justify="right"), box=None)
    for folder, count in sorted(counts.items()):
        sheet.add_row(folder or "(none)", str(count))
    console.print(sheet)


@app.command(cls=Command)
def prune(
    folder: Annotated[str, typer.Argument(help="A top-level folder of the source.")],
    root: Annotated[str, typer.Option(envvar="CLIPGEN_ROOT", help="Where artefacts live.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without it, only say what would go.")] = False,
) -> None:
    """Forget the pictures of a folder. Models that were trained on them keep working."""
    from clipgen_core.data.prune import prune

    gone = prune(Storage(root), folder, dry_run=not yes)
    verb = "are gone" if yes else "would go; repeat with --yes"
    console.print(f"{gone.images} pictures of {folder} {verb}")
    if gone.moved:
        console.print(f"{gone.moved} also lie in other folders and stay")
