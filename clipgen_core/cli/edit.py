"""Commands that generate images from images: variations, a part anew, and what lies beyond the border."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from clipgen_core.cli.options import (
    Candidates,
    Command,
    Guidance,
    Model,
    Output,
    Root,
    Seed,
    Steps,
    Temperature,
    TopK,
    TopP,
    app,
    console,
    read_image,
)
from clipgen_core.cli.sheets import chosen, given, loaded, shown_by, write_sheet
from clipgen_core.progress import track

ImageFile = Annotated[Path, typer.Argument(help="The image file; its central square is used.")]
Wanted = Annotated[
    str | None, typer.Argument(help="What the whole image should show; by default what it shows now.")
]


@app.command(cls=Command)
def vary(
    image: Annotated[list[Path], typer.Argument(help="Image files.")],
    model: Model = None,
    root: Root = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Variations of each image.")] = 4,
    seed: Seed = 0,
    output: Output = None,
    strength: Annotated[
        float,
        typer.Option(help="The share of codes that change; below 1 needs a model of any order."),
    ] = 1.0,
    guidance_scale: Guidance = None,
    steps: Steps = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    candidates: Candidates = None,
) -> None:
    """Generate variations of images: one row an image, those most like it first."""
    output = chosen(output, *image)
    images = [read_image(file) for file in image]
    settings = given(
        guidance_scale=guidance_scale,
        steps=steps,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        candidates=candidates,
    )
    generator, source = loaded(model, root)

    from clipgen_core.generation.output import settings_used

    with track("sampling", generator.transformer.positions, "codes") as meter:
        rows = generator.variations(images, n, seed, strength=strength, on_step=shown_by(meter), **settings)
    names = [file.name for file in image]
    parameters = {"variations_of": names, "n": n, "seed": seed, "strength": strength}
    used = settings_used(generator, settings, of_text=False)
    write_sheet(rows, output, {**parameters, **used, "model": source})


@app.command(cls=Command)
def edit(
    image: ImageFile,
    prompt: Wanted = None,
    *,
    mask: Annotated[
        Path,
        typer.Option(
            help="An image of the same size: white (a grey of 32 of 255 or lighter) where it is to change."
        ),
    ],
    model: Model = None,
    root: Root = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Images to generate.")] = 4,
    seed: Seed = 0,
    output: Output = None,
    guidance_scale: Guidance = None,
    steps: Steps = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    candidates: Candidates = None,
) -> None:
    """Generate a part of an image anew. Needs a model of any order (transformer.model.order any)."""
    output = chosen(output, image, mask)
    before, marked = read_image(image), read_image(mask)
    settings = given(
        guidance_scale=guidance_scale,
        steps=steps,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        candidates=candidates,
    )
    generator, source = loaded(model, root)

    from clipgen_core.generation.output import settings_used

    with track("sampling", generator.transformer.positions, "codes") as meter:
        row = generator.edit(before, marked, prompt, n, seed, on_step=shown_by(meter), **settings)
    console.print(f"CLIP score {'  '.join(f'{one.clip_score:.3f}' for one in row)}")
    used = settings_used(generator, settings, of_text=prompt is not None)
    parameters = {"edit_of": image.name, "mask": mask.name, "prompt": prompt, "n": n, "seed": seed}
    write_sheet([row], output, {**parameters, **used, "model": source})


@app.command(cls=Command)
def extend(
    image: ImageFile,
    prompt: Wanted = None,
    left: Annotated[
        int,
        typer.Option(help="Pixels to add at the left, at the model's resolution, rounded up to whole codes."),
    ] = 0,
    right: Annotated[int, typer.Option(help="Pixels to add at the right.")] = 0,
    top: Annotated[int, typer.Option(help="Pixels to add at the top.")] = 0,
    bottom: Annotated[int, typer.Option(help="Pixels to add at the bottom.")] = 0,
    model: Model = None,
    root: Root = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Images to generate.")] = 4,
    seed: Seed = 0,
    output: Output = None,
    guidance_scale: Guidance = None,
    steps: Steps = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    candidates: Candidates = None,
) -> None:
    """Generate what lies beyond the border of an image. Needs a model of any order (transformer.model.order
    any)."""
    output = chosen(output, image)
    before = read_image(image)
    settings = given(
        guidance_scale=guidance_scale,
        steps=steps,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        candidates=candidates,
    )
    generator, source = loaded(model, root)

    from clipgen_core.generation.output import settings_used

    row = generator.extend(
        before, prompt, n, seed, left=left, right=right, top=top, bottom=bottom, **settings
    )
    margins = {"left": left, "right": right, "top": top, "bottom": bottom}
    say_rounded(margins, generator.vqgan.config.downsampling)
    console.print(f"CLIP score {'  '.join(f'{one.clip_score:.3f}' for one in row)}")
    parameters = {"extension_of": image.name, "margins": list(margins.values()), "prompt": prompt}
    used = settings_used(generator, settings, of_text=prompt is not None)
    write_sheet([row], output, {**parameters, "n": n, "seed": seed, **used, "model": source})


def say_rounded(margins: Mapping[str, int], side: int) -> None:
    """Print where more pixels are added than were given.

    Args:
        margins: Pixels to add, by side of the image.
        side: Of a code, in pixels.
    """
    from clipgen_core.generation.editing import rounded

    added = rounded(margins, side)
    more = [
        f"{added[name]} at the {name} instead of {given}"
        for name, given in margins.items()
        if added[name] != given
    ]
    if more:
        console.print(f"added {', '.join(more)} pixels: a code is {side} pixels wide")
