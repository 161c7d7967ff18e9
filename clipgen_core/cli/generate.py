"""Commands that generate images or search for them."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from clipgen_core import logs
from clipgen_core.cli.options import (
    AsJson,
    Candidates,
    Command,
    Guidance,
    Model,
    Models,
    Output,
    Root,
    Seed,
    Steps,
    Temperature,
    TopK,
    TopP,
    app,
    console,
    is_file,
    read_image,
)
from clipgen_core.cli.sheets import chosen, given, loaded, shown_by, write_sheet
from clipgen_core.errors import ClipgenError
from clipgen_core.progress import track
from clipgen_core.settings.sampling import Condition
from clipgen_core.storage import Storage, last_root

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@app.command(cls=Command)
def generate(
    prompt: Annotated[
        list[str], typer.Argument(help="What the images should show; - reads prompts from stdin, one a line.")
    ],
    model: Model = None,
    root: Root = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Images for each prompt.")] = 4,
    seed: Seed = 0,
    output: Output = None,
    guidance_scale: Guidance = None,
    steps: Steps = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    candidates: Candidates = None,
    condition: Annotated[
        Condition | None,
        typer.Option(
            help="What stands for the prompt: its text embedding (text), that shifted by the difference of "
            "the means (shifted), the mean of the nearest image embeddings (retrieval), or each of those in "
            "turn (nearest)."
        ),
    ] = None,
    neighbours: Annotated[
        int | None, typer.Option(help="How many nearest image embeddings are used.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Generate images for one or more prompts: one row a prompt, the best first."""
    output, prompt = chosen(output), prompts_of(prompt)
    settings = given(
        guidance_scale=guidance_scale,
        steps=steps,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        candidates=candidates,
        condition=condition,
        neighbours=neighbours,
    )
    generator, source = loaded(model, root)

    from clipgen_core.generation.output import settings_used

    with track("sampling", generator.transformer.positions, "codes") as meter:
        rows = generator.generate_scored(prompt, n, seed, on_step=shown_by(meter), **settings)
    used = settings_used(generator, settings, of_text=True)
    made = {"prompts": prompt, "n": n, "seed": seed, **used, "model": source}
    scores = [[round(one.clip_score, 4) for one in row] for row in rows]
    if not as_json:
        for text, row in zip(prompt, scores, strict=True):
            console.print(f"{text}: CLIP score {'  '.join(f'{score:.3f}' for score in row)}")
    write_sheet(rows, output, made, quiet=as_json)
    if as_json:
        typer.echo(json.dumps({"file": str(output), **made, "clip_scores": scores}, ensure_ascii=False))


def prompts_of(given: list[str]) -> list[str]:
    """The given prompts, with the lines of stdin in place of a `-`.

    Raises:
        ClipgenError: Stdin has no line, or is not encoded in UTF-8.
    """
    prompts = list[str]()
    for text in given:
        if text != "-":
            prompts.append(text)
            continue
        try:
            lines = sys.stdin.buffer.read().decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ClipgenError("the prompts on stdin are not encoded in UTF-8: convert them") from error
        prompts += [line for line in lines if line.strip()]
    if not prompts:
        raise ClipgenError("there is no prompt on stdin: write one a line")
    return prompts


@app.command(cls=Command)
def ui(
    model: Models = None,
    root: Root = None,
    host: Annotated[str, typer.Option(help="The address to listen at; anyone who reaches it can use it.")] = (
        "127.0.0.1"
    ),
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port to listen at; 0 for a free one.")
    ] = 7860,
    root_path: Annotated[
        str, typer.Option(help="Where a proxy offers the page: a path such as /clip-gen, or a URL.")
    ] = "",
    waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait; more are refused.")] = 32,
) -> None:
    """Open a page to generate images and variations of images in the browser."""
    from clipgen_core.serving.models import available_models
    from clipgen_core.serving.page import serve

    serve(model or available_models(root), host=host, port=port, root_path=root_path, waiting=waiting)


@app.command(cls=Command)
def search(
    query: Annotated[str, typer.Argument(help="A text, or an image file.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="A model, as for generate, whose training images are searched; by default the embeddings "
            "table of the root is. Where its root is gone, give --root: else ids are shown, not addresses.",
        ),
    ] = None,
    root: Root = None,
    k: Annotated[int, typer.Option("-k", "-n", min=1, help="How many images to show.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Show the images of the embeddings table, or of a model, that are nearest to a text or to an image."""
    from clipgen_core.data.tables import find_table, one_of

    asked = read_image(Path(query)) if query.lower().endswith(IMAGE_SUFFIXES) or is_file(query) else query
    if model:
        from clipgen_core.generation.generator import TextToImage
        from clipgen_core.generation.load import images_of

        generator = TextToImage.from_pretrained(model)
        found = generator.search(asked, k)
        images = Storage(root).images if root else images_of(generator.parts.transformer)
    else:
        storage = Storage(root or last_root("embeddings"))
        found, images = _in_table(storage.current("embeddings", "search").path, asked, k), storage.images
    uris = dict[str, str]()
    if images and (table := find_table(images)):
        rows = table.to_table(columns=["id", "uri"], filter=one_of("id", [one for one, _ in found]))
        uris = dict(zip(rows["id"].to_pylist(), rows["uri"].to_pylist(), strict=True))
    if as_json:
        said = [{"id": one, "uri": uris.get(one), "cosine": round(cosine, 4)} for one, cosine in found]
        typer.echo(json.dumps(said, ensure_ascii=False))
        return
    sheet = Table("cosine", Column("image", overflow="fold"), box=None)
    for one, cosine in found:
        sheet.add_row(f"{cosine:.3f}", uris.get(one, one))
    console.print(sheet)


def _in_table(embeddings: str, query: Any, k: int) -> list[tuple[str, float]]:
    """The ids and cosines of the images in an embeddings table that are nearest to a text or to an image."""
    from clipgen_core.data.embeddings import EmbeddingTable
    from clipgen_core.generation.requests import checked_prompts, not_read
    from clipgen_core.models.clip import ClipEncoder

    table = EmbeddingTable(embeddings)
    clip = ClipEncoder(table.clip)
    if isinstance(query, str):
        for sentence in not_read(checked_prompts(query), clip.dropped_tokens([query])):
            logs.line(sentence)
        vector = clip.encode_texts([query])[0]
    else:
        vector = clip.encode_images([query])[0]
    found = table.nearest(vector, k)
    return list(zip(found.ids, found.cosine.tolist(), strict=True))
