"""Guidance and temperature that change while an image is generated, against constant ones.

Generates for the same prompts with the same seeds under each schedule, and scores with a CLIP that
conditioned nothing. The differences are to the model's own settings, prompt by prompt.

Run: python -m benchmarks.guidance --root ROOT --judge local-dir:CLIP --prompts prompts.csv
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.orders import some_texts
from clipgen_core.data.prompts import read_prompts
from clipgen_core.generation.batch import Batch, Row
from clipgen_core.generation.choosing import settings_of, uniform_draws
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.requests import image_seed
from clipgen_core.generation.steps import plan_of
from clipgen_core.judging.metrics import Interval, bootstrap
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.models.layout import NONE
from clipgen_core.models.transformer import Transformer
from clipgen_core.settings.sampling import SamplingConfig
from clipgen_core.storage import Storage

AT_ONCE = 32  # images
Schedule = Callable[[float, SamplingConfig], dict[str, float]]  # of the share of codes that are known

SCHEDULES: dict[str, Schedule] = {
    "the model's own": lambda _, own: {},
    "guidance 1": lambda _, own: {"guidance_scale": 1.0},
    "guidance 2": lambda _, own: {"guidance_scale": 2.0},
    "guidance 3": lambda _, own: {"guidance_scale": 3.0},
    "guidance rises from 1 to 2": lambda u, own: {"guidance_scale": 1 + u},
    "guidance rises from 1 to 3": lambda u, own: {"guidance_scale": 1 + 2 * u},
    "guidance falls from 2 to 1": lambda u, own: {"guidance_scale": 2 - u},
    "guidance falls from 3 to 1": lambda u, own: {"guidance_scale": 3 - 2 * u},
    "guidance 2 in the first half, then 1": lambda u, own: {"guidance_scale": 2.0 if u < 0.5 else 1.0},
    "guidance 2 after a quarter": lambda u, own: {"guidance_scale": 2.0 if u >= 0.25 else 1.0},
    "guidance 2 from 0.1 to 0.8": lambda u, own: {"guidance_scale": 2.0 if 0.1 <= u < 0.8 else 1.0},
    "temperature 0.4": lambda _, own: {"temperature": 0.4},
    "temperature 0.8": lambda _, own: {"temperature": 0.8},
    "temperature falls from 0.9 to 0.4": lambda u, own: {"temperature": 0.9 - 0.5 * u},
    "temperature rises from 0.4 to 0.9": lambda u, own: {"temperature": 0.4 + 0.5 * u},
}


@dataclasses.dataclass(frozen=True)
class Scored:
    """Scores under a schedule; the difference of the CLIP score to the model's own settings, with its 95 %
    interval over prompts."""

    schedule: str
    clip_score: float
    recall_at_5: float
    difference: Interval


def main(
    root: Annotated[str, typer.Option(help="A root with a transformer of raster order.")],
    judge: Annotated[str, typer.Option(help="A CLIP trained apart from the one that conditions.")],
    prompts: Annotated[str, typer.Option(help="A CSV with prompt and split.")],
    split: Annotated[str, typer.Option(help="Which prompts to generate.")] = "train",
    most: Annotated[int, typer.Option(help="How many of them.")] = 128,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Print one table."""
    generator = TextToImage.from_pretrained(Storage(root).current("transformer", "the comparison").path)
    encoder, known = ClipEncoder(judge), read_prompts(prompts)
    names = sorted({one.text for one in known})
    texts = some_texts(known, split, most)
    embedded, own = encoder.encode_texts(names), [names.index(text) for text in texts]
    conditions = torch.stack([_condition(generator, text) for text in texts])
    rows: list[Scored] = []
    base = None
    for schedule, settings in SCHEDULES.items():
        codes = [
            sample(generator.transformer, part, texts[i * AT_ONCE :], generator.parts.sampling, settings)
            for i, part in enumerate(conditions.split(AT_ONCE))
        ]
        cosine = encoder.encode_images(generator.decode(torch.cat(codes))) @ embedded.T
        scores = cosine[np.arange(len(own)), own]
        base = scores if base is None else base
        found = (cosine > scores[:, None]).sum(axis=1) < 5
        rows.append(Scored(schedule, float(scores.mean()), float(found.mean()), bootstrap(scores - base)))
    show(rows)
    if json_file:
        json_file.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))


def _condition(generator: TextToImage, text: str) -> Tensor:
    return generator.conditioner.of_text(generator.embed_text([text])[0], generator.parts.sampling)[0]


@torch.no_grad()
def sample(
    model: Transformer, conditions: Tensor, texts: Sequence[str], own: SamplingConfig, schedule: Schedule
) -> Tensor:
    """`clipgen_core.generation.sampling.sample_codes` in raster order, with settings that change.

    Args:
        model: Of raster order.
        conditions: Float [n, 1 + neighbours, d].
        texts: At least n; they and nothing else seed the random numbers.
        own: The model's settings.
        schedule: Settings that differ from them.

    Returns:
        int64 [n, t].
    """
    seeds = [image_seed(text, 0, 0) for text in texts[: len(conditions)]]
    draws, plan = torch.from_numpy(uniform_draws(seeds, model.positions)), plan_of(model, 0)
    rows, batch = [Row(plan, own, None, number) for number in range(len(seeds))], Batch(model, guided=True)
    for position in range(model.positions):
        now = own.model_copy(update=schedule(position / (model.positions - 1), own))
        for row in rows:
            row.config = now
        if position == 0:
            batch.add(rows, conditions, draws, torch.full(draws.shape, NONE))
        else:
            batch.settings[: len(rows)].copy_(settings_of([now] * len(rows)))
            batch.advance()
    return batch.codes[: len(rows), :-1]


def show(rows: list[Scored]) -> None:
    sheet = Table("schedule", "CLIP score", "recall@5", "difference of the CLIP score", box=None)
    for row in rows:
        mean, low, high = row.difference
        sheet.add_row(
            row.schedule,
            f"{row.clip_score:.3f}",
            f"{row.recall_at_5:.3f}",
            f"{mean:+.4f} ({low:+.4f} to {high:+.4f})",
        )
    Console(width=110).print(sheet)


if __name__ == "__main__":
    typer.run(main)
