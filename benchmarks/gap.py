"""Ways across the text-image gap, compared on prompts whose images no model has seen.

Trains one transformer a way of training on the token shards of a root, generates for the same prompts
with the same seeds under each way of conditioning, and scores with a CLIP that conditioned nothing.

Run: python -m benchmarks.gap --root ROOT --judge local-dir:CLIP --prompts prompts.csv --texts texts.txt
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from clipgen_core.data.prompts import read_prompts
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.parts import read_parts
from clipgen_core.judging.metrics import bootstrap
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.recipes import named
from clipgen_core.stages import transformer
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker

TRAINED: dict[str, dict[str, Any]] = {
    "direct": {},
    "isotropic": {"transformer.gap.noise": "isotropic"},
    "centred": {"transformer.gap.noise": "isotropic", "transformer.gap.centred": True},
    "residual": {"transformer.gap.noise": "residual"},
    "neighbours": {"transformer.model.neighbours": 4},
}
WAYS = (
    ("a", "nothing: the text embedding", "direct", "text"),
    ("a'", "shifted by the difference of the means", "direct", "shifted"),
    ("b", "noise in training", "isotropic", "text"),
    ("c", "means taken off, and noise (C3)", "centred", "text"),
    ("d", "noise shaped like the residual", "residual", "text"),
    ("e", "retrieval at generation", "direct", "retrieval"),
    ("e'", "one of the nearest for each candidate", "direct", "nearest"),
    ("b+e", "noise in training, retrieval at generation", "isotropic", "retrieval"),
    ("f", "neighbours in training, text at generation", "neighbours", "text"),
    ("f+e", "neighbours in training, retrieval at generation", "neighbours", "retrieval"),
)


@dataclasses.dataclass(frozen=True)
class Scored:
    """A way's scores with the half-widths of their 95 % bootstrap intervals."""

    way: str
    what: str
    clip_score: float
    clip_score_95: float
    recall_at_5: float
    recall_at_5_95: float


def main(
    root: Annotated[str, typer.Option(help="A root in which the stages up to token_shards have run.")],
    judge: Annotated[str, typer.Option(help="A CLIP trained apart from the one that conditions.")],
    prompts: Annotated[str, typer.Option(help="A CSV with prompt and split.")],
    texts: Annotated[str, typer.Option(help="Texts like the prompts, for the means.")],
    split: Annotated[str, typer.Option(help="Which prompts to score.")] = "held-out",
    steps: Annotated[int, typer.Option(help="Training steps of each transformer.")] = 400,
    recipe: str = "demo",
    candidates: int = 4,
    seeds: Annotated[int, typer.Option(help="Images scored for each prompt.")] = 2,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Print one table."""
    encoder, known = ClipEncoder(judge), read_prompts(prompts)
    names = list(dict.fromkeys(prompt.text for prompt in known))
    wanted = list(dict.fromkeys(prompt.text for prompt in known if prompt.split == split))
    embedded = encoder.encode_texts(names)
    made = []
    for way, what, trained, how in WAYS:
        checkpoint = train(trained, root, recipe, steps, texts)
        pictures = pictures_of(checkpoint, how, wanted, seeds, candidates)
        cosine = np.stack([encoder.encode_images(row) for row in pictures]) @ embedded.T
        made.append(score(way, what, cosine, [names.index(text) for text in wanted]))
    show(made, f"{len(wanted)} {split} prompts, {seeds} seeds, best of {candidates}, {steps} steps")
    if json_file:
        json_file.write_text(json.dumps([dataclasses.asdict(row) for row in made], indent=2))


def train(name: str, root: str, recipe: str, steps: int, texts: str) -> str:
    """The transformer of one way of training: its checkpoint; one that is there already is taken."""
    config = named(recipe).override({"transformer.train.steps": steps, **TRAINED[name]}).transformer
    shards = Storage(root).current("tokens", "the comparison").path
    out = Storage(f"{root}/gap/{name}")
    return transformer.run(config, tokens=shards, out=out, tracker=NullTracker(), texts=texts).checkpoint


def pictures_of(
    checkpoint: str, condition: str, prompts: list[str], seeds: int, candidates: int
) -> list[list[Any]]:
    """`seeds` images a prompt, each the best of `candidates` by the conditioning CLIP."""
    generator = TextToImage(read_parts(checkpoint))
    settings: dict[str, Any] = {"condition": condition, "candidates": candidates}
    rows = [generator.generate(prompts, seed=seed, **settings) for seed in range(seeds)]
    return [[row[i][0] for row in rows] for i in range(len(prompts))]


def score(way: str, what: str, cosine: np.ndarray, own: list[int]) -> Scored:
    """Means over prompts of the scores of cosines [prompts, seeds, names]; `own` is each prompt's name."""
    given = np.take_along_axis(cosine, np.array(own)[:, None, None], axis=2)
    found = ((cosine > given).sum(axis=2) < 5).mean(axis=1)
    scores = given[:, :, 0].mean(axis=1)
    return Scored(
        way,
        what,
        float(scores.mean()),
        bootstrap(scores).half_width,
        float(found.mean()),
        bootstrap(found).half_width,
    )


def show(rows: list[Scored], title: str) -> None:
    sheet = Table("", "way", "CLIP score", "recall@5", box=None, title=title)
    for row in rows:
        sheet.add_row(
            row.way,
            row.what,
            f"{row.clip_score:.3f} ± {row.clip_score_95:.3f}",
            f"{row.recall_at_5:.3f} ± {row.recall_at_5_95:.3f}",
        )
    Console(width=110).print(sheet)


if __name__ == "__main__":
    typer.run(main)
