"""Recipes for small photographs, compared after equal computing time.

Trains VQGANs of several shapes on the images table of a root, then, with `--stage transformer`, transformers
on the codes of a VQGAN. Each takes the same processor time, which is measured before it begins, so other work
on the machine changes nothing. A CLIP that no training has seen judges the images. Trainings and rows that
are there already are kept, so that a comparison that was stopped goes on.

Run: python -m benchmarks.photos --root ROOT --clip CLIP --judge CLIP --json FILE [--stage transformer]
"""

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from clipgen_core.data.images import ImageTable
from clipgen_core.data.pixels import fit_square, grid, to_bytes, to_float, to_images
from clipgen_core.device import autocast, default_device
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.load import load_vqgan
from clipgen_core.generation.parts import read_parts
from clipgen_core.judging.detail import figures_of
from clipgen_core.judging.distances import Discrepancy, kid
from clipgen_core.judging.judge import CLIP
from clipgen_core.judging.metrics import psnr
from clipgen_core.judging.reference import scaled
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.models.quantizer import usage_and_perplexity
from clipgen_core.recipes import Recipe, named
from clipgen_core.stages import tokens, transformer, vqgan
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker

Overrides = dict[str, Any]

FINE: Overrides = {"vqgan.model.channels": (96, 160)}  # of 16 x 16 codes
VQGANS: dict[str, Overrides] = {
    "8 x 8 of 256, as the demo": {},
    "8 x 8 of 1,024": {"vqgan.model.quantizer.codebook_size": 1024},
    "16 x 16 of 256": FINE,
    "16 x 16 of 256, no discriminator": FINE | {"vqgan.adversarial": 0.0},
}
WIDE: Overrides = {"transformer.model.width": 448, "transformer.model.heads": 7}
SMALL: Overrides = {"transformer.train.batch_size": 32, "transformer.train.learning_rate": 3e-3}
TRANSFORMERS: dict[str, Overrides] = {
    "nano": {},
    "nano, batches of 32": SMALL,
    "nano, batches of 32, four views": SMALL | {"tokens.views": 4},
    "wider, batches of 32, four views": SMALL | WIDE | {"tokens.views": 4},
}
SHORT, LONG = 4, 16  # steps of the two trainings that tell the time of one
REFERENCE, COUNT, GENERATED = 2000, 400, 160  # real images of the training, held-out ones, generated ones
KINDS = ("daisy", "dandelion", "rose", "sunflower", "tulip")


def main(
    root: Annotated[str, typer.Option(help="A root that holds the images and their embeddings.")],
    clip: Annotated[str, typer.Option(help="The CLIP that trains and conditions.")],
    judge: Annotated[str, typer.Option(help="A CLIP trained apart from it.")],
    json_file: Annotated[Path, typer.Option("--json", help="Rows that are measured; kept between runs.")],
    stage: Annotated[str, typer.Option(help="vqgan or transformer.")] = "vqgan",
    base: Annotated[str, typer.Option(help="For transformers: the row of the VQGAN.")] = "",
    minutes: Annotated[float, typer.Option(help="Of both of two cores, for each training.")] = 5,
    only: Annotated[str, typer.Option(help="Rows that are measured, by number; all by default.")] = "",
) -> None:
    """Train, score, and print a table."""
    rows: dict[str, dict[str, float]] = json.loads(json_file.read_text()) if json_file.exists() else {}
    storage, judged = Storage(root), Judged(ImageTable(Storage(root).images), ClipEncoder(judge))
    shown = json_file.with_suffix("")
    shown.mkdir(exist_ok=True)
    chosen = list((VQGANS if stage == "vqgan" else TRANSFORMERS).items())
    for name, overrides in [chosen[int(i)] for i in only.split(",")] if only else chosen:
        trained: Callable[[int, Storage], Any]
        label = f"{name}, {minutes:g} minutes"
        if stage == "vqgan":
            recipe = named("demo").override(overrides)
            trained = partial(train_vqgan, recipe, storage.images, clip)
        else:
            recipe, label = _of_row(base).override(overrides), f"{label}, codes of {base}"
            codec = train_vqgan(_of_row(base), storage.images, clip, int(rows[base]["steps"]), storage)
            trained = partial(train_transformer, recipe, shards_of(recipe, storage, codec.checkpoint))
        row = rows.setdefault(label, {})
        if "steps" not in row:
            row["steps"] = steps_in(minutes, trained)
            json_file.write_text(json.dumps(rows, indent=2))
        begin = time.process_time()
        result = trained(int(row["steps"]), storage)
        row.setdefault("minutes", (time.process_time() - begin) / 120)
        if "1000 kid" not in row:
            judge_of: Callable[..., dict[str, float]] = (
                judged.reconstructed if stage == "vqgan" else judged.generated
            )
            row |= judge_of(result, recipe, shown / f"{label}.png")
        json_file.write_text(json.dumps(rows, indent=2))
    show(rows)


def _of_row(label: str) -> Recipe:
    """The recipe of a row with a VQGAN."""
    return named("demo").override(VQGANS[label.rpartition(", ")[0]])


def train_vqgan(recipe: Recipe, images: str, clip: str, steps: int, out: Storage) -> vqgan.Result:
    """Train a VQGAN, unless it is there already.

    Args:
        recipe: Its shape and its losses.
        images: The images table.
        clip: The CLIP of the perceptual loss.
        steps: Of the training.
        out: The root of its checkpoints.

    Returns:
        The checkpoint.
    """
    config = recipe.override({"vqgan.train.steps": steps, "vqgan.train.checkpoint_every": 10_000}).vqgan
    return vqgan.run(config, images=images, clip=clip, out=out, tracker=NullTracker())


def shards_of(recipe: Recipe, storage: Storage, codec: str) -> str:
    """Encode the images.

    Args:
        recipe: Says how often each is encoded.
        storage: The root.
        codec: The VQGAN.

    Returns:
        The token shards.
    """
    return tokens.run(
        recipe.tokens,
        images=storage.images,
        embeddings=storage.current("embeddings", "the comparison").path,
        vqgan=codec,
        out=storage,
        tracker=NullTracker(),
    ).shards


def train_transformer(recipe: Recipe, shards: str, steps: int, out: Storage) -> transformer.Result:
    """Train a transformer, unless it is there already.

    Args:
        recipe: Its shape.
        shards: The token shards.
        steps: Of the training.
        out: The root of its checkpoints.

    Returns:
        The checkpoint.
    """
    given = {"transformer.train.steps": steps, "transformer.train.checkpoint_every": max(steps // 5, 1)}
    config = recipe.override(given).transformer
    return transformer.run(config, tokens=shards, out=out, tracker=NullTracker())


class Judged:
    """Compares images with real ones.

    Args:
        table: The real images.
        seen: The CLIP that judges.
    """

    def __init__(self, table: ImageTable, seen: ClipEncoder) -> None:
        self.table, self.seen = table, seen
        self.kid: Discrepancy | None = None

    def reconstructed(self, result: vqgan.Result, recipe: Recipe, shown: Path) -> dict[str, float]:
        """Judge the reconstructions of held-out images.

        Args:
            result: The VQGAN.
            recipe: Its recipe.
            shown: The file for some of them.

        Returns:
            PSNR, usage of the codes, and the figures of `against_real`.
        """
        model, size = load_vqgan(result.checkpoint), recipe.vqgan.model.image_size
        pixels = to_float(to_bytes(self._real(self.table.validation[:COUNT], size)))
        codes, back = [], []
        with torch.no_grad(), autocast(default_device()):
            for part in pixels.split(64):
                codes.append(model.encode(part))
                back.append(model.decode(codes[-1]).float())
        made = to_images(torch.cat(back))
        grid([*to_images(pixels[:16]), *made[:16]], 16).save(shown)
        used = torch.cat(codes).flatten().bincount(minlength=recipe.vqgan.model.quantizer.codebook_size)
        return {
            "psnr": psnr(torch.cat(back), pixels).mean().item(),
            "usage": usage_and_perplexity(used)[0],
        } | self.against_real(made, size)

    def generated(self, result: transformer.Result, recipe: Recipe, shown: Path) -> dict[str, float]:
        """Judge generated images.

        Args:
            result: The transformer.
            recipe: Its recipe.
            shown: The file for some of them.

        Returns:
            Validation loss, the share of images whose kind the judge sees, and the figures of `against_real`.
        """
        generator = TextToImage(read_parts(result.checkpoint))
        rows = generator.generate(KINDS, n=GENERATED // len(KINDS), seed=0)
        made = [row[i] for i in range(GENERATED // len(KINDS)) for row in rows]  # kind after kind, in turn
        names = self.seen.encode_texts(KINDS)
        embeddings = self.seen.encode_images(made)
        right = (embeddings @ names.T).argmax(axis=1) == np.arange(GENERATED) % len(KINDS)
        grid(made[:40], 10).save(shown)
        return {
            "validation loss": result.fitted.metrics["validation_loss"],
            "right kind": float(right.mean()),
        } | self.against_real(made, recipe.vqgan.model.image_size, embeddings)

    def against_real(
        self, made: list[Image.Image], size: int, embeddings: np.ndarray | None = None
    ) -> dict[str, float]:
        """Compare images with real ones.

        Args:
            made: The images.
            size: Their side.
            embeddings: Their embeddings by the judge; computed by default.

        Returns:
            1000 KID in the judge's space; sharpness, shape and variety as multiples of the real images'.
        """
        if self.kid is None:
            some = np.random.default_rng(0).permutation(self.table.train)[:REFERENCE]
            self.kid = kid(scaled(CLIP, self.seen.encode_images(self._real(some, size))))
        own, real = figures_of(made), figures_of(self._real(self.table.validation[:COUNT], size))
        embeddings = self.seen.encode_images(made) if embeddings is None else embeddings
        value = self.kid.to(scaled(CLIP, embeddings)).value
        return {"1000 kid": 1000 * value} | {name: own[name] / real[name] for name in own}

    def _real(self, rows: np.ndarray, size: int) -> list[Image.Image]:
        return self.table.map(lambda _, one: fit_square(one, size), rows)


def steps_in(minutes: float, trained: Callable[[int, Storage], object]) -> int:
    """How many steps two cores compute in some minutes.

    Args:
        minutes: Of both cores.
        trained: A training of some steps, whose checkpoints go under a root.

    Returns:
        The steps.
    """
    times = []
    for steps in (SHORT, LONG):
        with tempfile.TemporaryDirectory() as scratch:
            begin = time.process_time()
            trained(steps, Storage(scratch))
            times.append(time.process_time() - begin)
    return int(120 * minutes / ((times[1] - times[0]) / (LONG - SHORT)))


def show(rows: Mapping[str, Mapping[str, float]]) -> None:
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    sheet = Table("", *columns, box=None)
    for name, row in rows.items():
        sheet.add_row(name, *(f"{row[column]:.4g}" if column in row else "" for column in columns))
    Console(width=200).print(sheet)


if __name__ == "__main__":
    typer.run(main)
