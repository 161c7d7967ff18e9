"""Commands that make pictures or look for them."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Column, Table

from clipgen_core.cli.options import (
    Command,
    Model,
    Output,
    Root,
    Seed,
    app,
    console,
    last_model,
    read_picture,
)
from clipgen_core.errors import ClipgenError
from clipgen_core.storage import Storage, last_root

Condition = Literal["text", "shifted", "retrieval", "nearest"]


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
        typer.Option(
            help="What stands for the prompt: its text embedding, that shifted, the mean of the nearest "
            "image embeddings, or one of those for each candidate."
        ),
    ] = None,
    neighbours: Annotated[
        int | None, typer.Option(help="How many of the nearest image embeddings are taken.")
    ] = None,
) -> None:
    """Generate pictures for one or more prompts: one row a prompt, the best first."""
    from clipgen_core.generation.generator import TextToImage
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
    generator = TextToImage.from_pretrained(model or last_model(root))
    given = {name: value for name, value in given.items() if value is not None}
    with track("sampling", generator.transformer.positions, "codes") as meter:
        rows = generator.generate_scored(prompt, n, seed, lambda _: meter.advance(), **given)
    for text, row in zip(prompt, rows, strict=True):
        scores = "  ".join(f"{one.clip_score:.3f}" for one in row)
        console.print(f"{text}: CLIP score {scores}")
    _write_sheet(rows, output, {"prompts": prompt, "seed": seed, **given})


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
    from clipgen_core.generation.generator import TextToImage
    from clipgen_core.progress import track

    _require_folder(output)
    pictures = [read_picture(file) for file in picture]
    generator = TextToImage.from_pretrained(model or last_model(root))
    with track("sampling", generator.transformer.positions, "codes") as meter:
        rows = generator.variations(pictures, n, seed, lambda _: meter.advance())
    _write_sheet(rows, output, {"variations_of": [file.name for file in picture], "seed": seed})


@app.command(cls=Command)
def ui(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="A model to offer, as for generate; may be repeated. By default the registry's champion, "
            "its candidate and the last local run, as far as there are any.",
        ),
    ] = None,
    root: Root = None,
    host: Annotated[str, typer.Option(help="The address to listen at; anyone who reaches it can use it.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="The port to listen at.")] = 7860,
    waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait; more are refused.")] = 32,
) -> None:
    """Open a page to generate pictures, and variations of pictures, in the browser."""
    from clipgen_core.serving.page import available_models, serve

    serve(model or available_models(root), host=host, port=port, waiting=waiting)


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
        vector = clip.encode_images([read_picture(Path(query))])[0]
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


def _require_folder(output: Path) -> None:
    if not output.resolve().parent.is_dir():
        raise ClipgenError(f"{output.parent} does not exist: make it, or choose another --output")
    if output.suffix.lower() != ".png":
        raise ClipgenError(f"{output} does not end in .png: the picture is written as PNG")


def _write_sheet(rows: list[list[Any]], output: Path, parameters: dict[str, Any]) -> None:
    """One row of pictures a request, as PNG that says how it was made."""
    from clipgen_core.data.pixels import grid, png_bytes, with_parameters
    from clipgen_core.storage import write_bytes

    sheet = grid([one.image for row in rows for one in row], columns=len(rows[0]))
    write_bytes(str(output), png_bytes(with_parameters(sheet, parameters)))
    console.print(f"wrote {output} ({sheet.width}x{sheet.height})")
