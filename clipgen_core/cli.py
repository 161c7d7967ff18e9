"""The `clipgen` command line. Parses and prints; the work is elsewhere."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Column, Table

from clipgen_core.errors import ClipgenError
from clipgen_core.storage import Storage, last_root
from clipgen_core.train import train
from clipgen_core.training.interrupt import Interrupted

console = Console()
Kind = Literal["taming", "llamagen", "clip-gen"]
Condition = Literal["text", "shifted", "retrieval"]
BAD_INPUT = 2
STOPPED = 128 + 15  # as a shell reports SIGTERM

Root = Annotated[
    str | None,
    typer.Option(
        envvar="CLIPGEN_ROOT",
        help="Where artefacts live: a folder or an fsspec URL; by default that of the last local run.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="models:/clip-gen@candidate, a generator folder or a transformer checkpoint; "
        "by default the last local run.",
    ),
]

Seed = Annotated[int, typer.Option(help="The same seed gives the same pictures.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="The picture to write.")]

app = typer.Typer(
    help="Text-to-image from unlabelled pictures (CLIP-GEN): embed, search, generate.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


class Command(typer.core.TyperCommand):
    """A command whose bad input is one sentence and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ClipgenError as error:
            Console(stderr=True).print(f"[bold red]error:[/] {error}", highlight=False)
            raise typer.Exit(STOPPED if isinstance(error, Interrupted) else BAD_INPUT) from None


@app.command(cls=Command)
def generate(
    prompt: Annotated[list[str], typer.Argument(help="What the pictures should show.")],
    model: Model = None,
    root: Root = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Pictures for each prompt.")] = 4,
    seed: Seed = 0,
    output: Output = Path("out.png"),
    guidance_scale: Annotated[float | None, typer.Option(help="Higher follows the prompt more.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Lower is safer, higher is varied.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample from the k likeliest codes only.")] = None,
    candidates: Annotated[
        int | None, typer.Option(help="Pictures sampled for each one kept, ranked by CLIP.")
    ] = None,
    condition: Annotated[
        Condition | None,
        typer.Option(help="What stands for the prompt: its text embedding, that shifted, or retrieval."),
    ] = None,
    neighbours: Annotated[
        int | None, typer.Option(help="How many of the nearest image embeddings retrieval averages.")
    ] = None,
) -> None:
    """Generate pictures for one or more prompts: one row a prompt, the best first."""
    from clipgen_core.generator import TextToImage
    from clipgen_core.progress import track

    _require_folder(output)
    given: dict[str, Any] = {
        "guidance_scale": guidance_scale,
        "temperature": temperature,
        "top_k": top_k,
        "candidates": candidates,
        "condition": condition,
        "neighbours": neighbours,
    }
    generator = TextToImage.from_pretrained(model or _last_model(root))
    given = {name: value for name, value in given.items() if value is not None}
    with track("sampling", generator.transformer.positions, "codes") as meter:
        rows = generator.generate_scored(prompt, n, seed, lambda _: meter.advance(), **given)
    for text, row in zip(prompt, rows, strict=True):
        scores = "  ".join(f"{one.clip_score:.3f}" for one in row)
        console.print(f"{text}: CLIP score {scores}", highlight=False)
    _write_sheet(rows, output)


@app.command(cls=Command)
def vary(
    picture: Annotated[list[Path], typer.Argument(help="Picture files.")],
    model: Model = None,
    root: Root = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Variations of each picture.")] = 4,
    seed: Seed = 0,
    output: Output = Path("out.png"),
) -> None:
    """Make variations of pictures: one row a picture, the likest first."""
    from clipgen_core.generator import TextToImage
    from clipgen_core.progress import track

    _require_folder(output)
    pictures = [_read_picture(file) for file in picture]
    generator = TextToImage.from_pretrained(model or _last_model(root))
    with track("sampling", generator.transformer.positions, "codes") as meter:
        rows = generator.variations(pictures, n, seed, lambda _: meter.advance())
    _write_sheet(rows, output)


@app.command(cls=Command)
def search(
    query: Annotated[str, typer.Argument(help="A text, or a picture file.")],
    root: Root = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many pictures to show.")] = 10,
) -> None:
    """Show the pictures of the embedding table that are nearest to a text or to a picture."""
    from clipgen_core.data.tables import nearest, open_table
    from clipgen_core.models.clip import ClipEncoder

    storage = Storage(root or last_root("embeddings"))
    table = open_table(storage.current("embeddings", "search").path)
    clip = ClipEncoder(table.schema.metadata[b"clip"].decode())
    if Path(query).is_file():
        vector = clip.encode_images([_read_picture(Path(query))])[0]
    else:
        vector = clip.encode_texts([query])[0]
    found = nearest(table, vector, k)
    ids = ", ".join(f"'{one}'" for one in found["id"].to_pylist())
    rows = open_table(storage.images).to_table(columns=["id", "uri"], filter=f"id IN ({ids})")
    uris = dict(zip(rows["id"].to_pylist(), rows["uri"].to_pylist(), strict=True))
    sheet = Table("cosine", Column("picture", overflow="fold"), box=None)
    for one, cosine in zip(found["id"].to_pylist(), found["cosine"].to_pylist(), strict=True):
        sheet.add_row(f"{cosine:.3f}", uris.get(one, one))
    console.print(sheet)


app.command(cls=Command)(train)


@app.command(cls=Command, name="import-vqgan")
def import_vqgan(
    kind: Annotated[Kind, typer.Argument(help="Whose weights they are.")],
    file: Annotated[Path, typer.Argument(help="The published checkpoint file.")],
    root: Annotated[str, typer.Option(envvar="CLIPGEN_ROOT", help="Where artefacts live.")],
) -> None:
    """Make a published VQGAN the current one of a root; fine-tune it with vqgan.start_from."""
    from clipgen_core import published

    console.print(f"the VQGAN is at {published.import_vqgan(kind, file, Storage(root))}", highlight=False)


@app.command(cls=Command, name="import-generator")
def import_generator(
    vqgan: Annotated[Path, typer.Argument(help="The public implementation's vqgan_coco.pt.")],
    transformer: Annotated[Path, typer.Argument(help="Its gpt_coco.pt.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The generator folder to write.")],
    clip: Annotated[
        str, typer.Option(help="The CLIP it was trained with.")
    ] = "hub:ViT-B-32-quickgelu/openai",
) -> None:
    """Bring the public CLIP-GEN weights into a generator folder: 256 px, trained on MS-COCO."""
    from clipgen_core import published

    published.import_generator(vqgan, transformer, clip, output)
    console.print(f"try: clipgen generate 'a city bus' -m {output}", highlight=False)


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
        console.print(f"the folder {gone} is gone: its rows stay until `clipgen prune`", highlight=False)
    for reason, count in sorted(taken.rejects.items()):
        console.print(f"{count} rejected: {reason} (see {storage.rejects})", highlight=False)
    console.print(f"{made.embedded} embedded in {made.table}", highlight=False)


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
        f"{made.files} files, about {made.pictures} pictures, {made.usable:.0%} usable, "
        f"{made.mean_side:.0f} px a side; {made.device}",
        highlight=False,
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
    from clipgen_core.prune import prune

    gone = prune(Storage(root), folder, dry_run=not yes)
    verb = "are gone" if yes else "would go; repeat with --yes"
    console.print(f"{gone.pictures} pictures of {folder} {verb}", highlight=False)
    if gone.filed_elsewhere:
        console.print(f"{gone.filed_elsewhere} also lie in other folders and stay", highlight=False)


def _last_model(root: str | None) -> str:
    return Storage(root or last_root("transformer")).current("transformer", "generating without --model").path


def _read_picture(file: Path) -> Any:
    from clipgen_core.data.pictures import Rejected, decode

    try:
        return decode(file.read_bytes()).image
    except (OSError, Rejected) as error:
        raise ClipgenError(f"{file} is no usable picture ({error}): name another") from error


def _require_folder(output: Path) -> None:
    if not output.resolve().parent.is_dir():
        raise ClipgenError(f"{output.parent} does not exist: make it, or choose another --output")
    if output.suffix.lower() != ".png":
        raise ClipgenError(f"{output} does not end in .png: the picture is written as PNG")


def _write_sheet(rows: list[list[Any]], output: Path) -> None:
    """One row of pictures a request, as PNG."""
    from clipgen_core.data.pictures import grid, png_bytes
    from clipgen_core.storage import write_bytes

    sheet = grid([one.image for row in rows for one in row], columns=len(rows[0]))
    write_bytes(str(output), png_bytes(sheet))
    console.print(f"wrote {output} ({sheet.width}x{sheet.height})", highlight=False)


def main() -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")
    sys.exit(app())


if __name__ == "__main__":
    main()
