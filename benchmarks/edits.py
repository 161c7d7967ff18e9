"""Edits of a part of an image, scored by a CLIP that did not condition them.

Each image is changed under a mask by the name of another image, and restored under it by its own name: by an
edit, by an image generated for the name and pasted under the mask, and by that image as a whole.

Run: python -m benchmarks.edits --model CHECKPOINT --judge local-dir:CLIP --prompts prompts.csv
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from clipgen_core import filesystem
from clipgen_core.data.decode import decode
from clipgen_core.data.pixels import fit_square
from clipgen_core.data.prompts import Prompt, read_prompts
from clipgen_core.errors import ClipgenError
from clipgen_core.generation.generator import TextToImage
from clipgen_core.judging.metrics import Interval, bootstrap
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.progress import track

MASKS = {"middle": (0.25, 0.25, 0.75, 0.75), "right half": (0.5, 0.0, 1.0, 1.0)}  # left, top, right, bottom
WAYS = ("image as it is", "edited", "generated and pasted", "generated")
Box = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Scored:
    """Scores of one way, with their 95 % intervals over the images.

    inside: Cosine of the part under the mask with the prompt.
    whole: Cosine of the whole image with the prompt.
    outside: Mean absolute change outside of the mask, in levels of 255.
    seam: Mean absolute difference of neighbouring pixels across the mask's border, in levels of 255.
    """

    asked: str
    mask: str
    way: str
    inside: Interval
    whole: Interval
    outside: Interval
    seam: Interval


def main(
    model: Annotated[str, typer.Option(help="A model of any order.")],
    judge: Annotated[str, typer.Option(help="A CLIP trained apart from the one that conditions.")],
    prompts: Annotated[str, typer.Option(help="A CSV with prompt, split and file: names of images.")],
    split: Annotated[str, typer.Option(help="Whose images are edited.")] = "held-out",
    most: Annotated[int, typer.Option(help="Images at the most.")] = 48,
    seed: int = 0,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Print one table."""
    generator, scorer = TextToImage.from_pretrained(model), ClipEncoder(judge)
    size = generator.vqgan.config.image_size
    chosen = some([one for one in read_prompts(prompts) if one.split == split and one.file], most)
    if not chosen:
        raise ClipgenError(
            f"{prompts} names no image of a prompt of the split {split!r}: choose another --split"
        )
    images = [fit_square(decode(filesystem.read_bytes(one.file or "")).image, size) for one in chosen]
    own = [one.text for one in chosen]
    rows = []
    for asked, texts in (("its own name", own), ("another name", own[1:] + own[:1])):
        generated = [row[0] for row in generator.generate(texts, seed=seed)]
        for mask, place in MASKS.items():
            left, top, right, bottom = (round(share * size) for share in place)
            box = left, top, right, bottom
            for way, made in ways(generator, images, texts, generated, box, seed):
                rows.append(scored(scorer, (asked, mask, way), images, made, texts, box))
    show(rows)
    if json_file:
        json_file.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))


def some(named: list[Prompt], most: int) -> list[Prompt]:
    """Images chosen at random, but always the same, of different names.

    Args:
        named: All of them.
        most: How many at the most.

    Returns:
        The chosen ones.
    """
    first = {one.text: one for one in reversed(named)}
    texts = sorted(first)
    return [first[texts[i]] for i in np.random.default_rng(0).permutation(len(texts))[:most]]


def ways(
    generator: TextToImage,
    images: list[Image.Image],
    texts: list[str],
    generated: list[Image.Image],
    box: Box,
    seed: int,
) -> Iterator[tuple[str, list[Image.Image]]]:
    """Make the images of every way.

    Args:
        generator: Of any order.
        images: Squares of its size.
        texts: What each is to show.
        generated: Images of these texts.
        box: The part under the mask.
        seed: Of the edits.

    Yields:
        The way, and its images.
    """
    mask = Image.new("L", images[0].size)
    mask.paste(255, box)
    edited = []
    with track("editing", len(images), "images") as meter:
        for image, text in zip(images, texts, strict=True):
            edited.append(generator.edit(image, mask, text, seed=seed)[0].image)
            meter.advance(1)
    pasted = [Image.composite(new, image, mask) for new, image in zip(generated, images, strict=True)]
    yield from zip(WAYS, (images, edited, pasted, generated), strict=True)


def scored(
    scorer: ClipEncoder,
    name: tuple[str, str, str],
    images: list[Image.Image],
    made: list[Image.Image],
    texts: list[str],
    box: Box,
) -> Scored:
    """Score the images of one way.

    Args:
        scorer: The CLIP.
        name: What was asked for, the mask and the way.
        images: As they were.
        made: As they are.
        texts: What each is to show.
        box: The part under the mask.

    Returns:
        The row of the table.
    """
    wanted = scorer.encode_texts(texts)
    inside = (scorer.encode_images([image.crop(box) for image in made]) * wanted).sum(axis=1)
    whole = (scorer.encode_images(made) * wanted).sum(axis=1)
    changes = [change_outside(before, after, box) for before, after in zip(images, made, strict=True)]
    seams = [seam(image, box) for image in made]
    return Scored(*name, *(bootstrap(np.asarray(values)) for values in (inside, whole, changes, seams)))


def change_outside(before: Image.Image, after: Image.Image, box: Box) -> float:
    """Mean absolute difference of the pixels outside of a box.

    Args:
        before: RGB.
        after: RGB, of the same size.
        box: Left, top, right and bottom.

    Returns:
        In levels of 255.
    """
    left, top, right, bottom = box
    difference = np.abs(np.asarray(after, np.float64) - np.asarray(before, np.float64))
    there = np.ones(difference.shape[:2], bool)
    there[top:bottom, left:right] = False
    return float(difference[there].mean())


def seam(image: Image.Image, box: Box) -> float:
    """Mean absolute difference of neighbouring pixels, one within a box and one outside of it.

    Args:
        image: RGB.
        box: Left, top, right and bottom; sides on the image's border do not count.

    Returns:
        In levels of 255.
    """
    pixels, (left, top, right, bottom) = np.asarray(image, np.float64), box
    rows, columns = slice(top, bottom), slice(left, right)
    across = [pixels[rows, x - 1] - pixels[rows, x] for x in (left, right) if 0 < x < image.width]
    across += [pixels[y - 1, columns] - pixels[y, columns] for y in (top, bottom) if 0 < y < image.height]
    return float(np.abs(np.concatenate(across)).mean())


def show(rows: list[Scored]) -> None:
    columns = ("CLIP score inside", "of the whole", "change outside", "seam")
    sheet = Table("prompt", "mask", "way", *columns, box=None)
    for row in rows:
        scores = [f"{one.mean:.3f} ± {one.half_width:.3f}" for one in (row.inside, row.whole)]
        levels = [f"{one.mean:.1f} ± {one.half_width:.1f}" for one in (row.outside, row.seam)]
        sheet.add_row(row.asked, row.mask, row.way, *scores, *levels)
    Console(width=140).print(sheet)


if __name__ == "__main__":
    typer.run(main)
