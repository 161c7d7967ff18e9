"""Orders of generation, compared after equal training time.

Trains transformers of raster, annealed and any order on the token shards of a root, as long as the recipe's
raster transformer takes, generates for the same prompts in several numbers of steps, and scores with a CLIP
that conditioned nothing.

Trainings that are there already are taken, and so are rows of the table in the file given by --json, so a
comparison that was stopped goes on. The speeds of all rows are measured at the end, in turn.

Run: python -m benchmarks.orders --root ROOT --judge local-dir:CLIP --prompts prompts.csv --texts texts.txt
"""

import csv
import dataclasses
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.timing import in_turn, ratio
from clipgen_core import filesystem
from clipgen_core.data.prompts import Prompt, read_prompts
from clipgen_core.data.tokens import read_manifest
from clipgen_core.device import autocast, default_device
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.parts import read_parts
from clipgen_core.generation.steps import generation_loss
from clipgen_core.judging.judge import CLIP, Judge
from clipgen_core.judging.metrics import bootstrap
from clipgen_core.judging.reference import SUFFIX, Reference, choose_stored
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.models.transformer import Transformer
from clipgen_core.recipes import Recipe, named
from clipgen_core.schema import TokenManifest
from clipgen_core.stages import transformer
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker
from clipgen_core.training.optim import adamw
from clipgen_core.training.task import attention_for

ORDERS = ("raster", "annealed", "any")
FOUND = 5  # recall@5
PARAPHRASES = Path(__file__).with_name("paraphrases.csv")  # of the demo's training names; none is a caption


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Prompts of one kind, each with the names that an image of it may be taken for."""

    kind: str
    texts: list[str]
    names: list[list[str]]


@dataclasses.dataclass(frozen=True)
class Scored:
    """Scores of one order in one number of steps; of each kind of prompt recall@5 and CLIP score with the
    half-widths of their 95 % intervals, over prompts."""

    order: str
    steps: int
    recall: dict[str, tuple[float, float]]
    clip_score: dict[str, tuple[float, float]]
    kid: float
    images_per_second: float = 0.0


def main(
    root: Annotated[str, typer.Option(help="A root in which the stages up to token_shards have run.")],
    judge: Annotated[str, typer.Option(help="A CLIP trained apart from the one that conditions.")],
    prompts: Annotated[str, typer.Option(help="A CSV with prompt and split.")],
    texts: Annotated[str, typer.Option(help="Texts like the prompts, for the means.")],
    paraphrases: Annotated[
        Path, typer.Option(help="A CSV with prompt and names, which are separated by |.")
    ] = PARAPHRASES,
    steps: Annotated[str, typer.Option(help="Numbers of steps for any order.")] = "8,12,16,64",
    most: Annotated[int, typer.Option(help="Prompts of each kind at the most.")] = 96,
    seeds: Annotated[int, typer.Option(help="Trainings of each order.")] = 2,
    training_steps: Annotated[
        int | None, typer.Option(help="Of the raster transformer; the recipe's.")
    ] = None,
    recipe: str = "demo",
    candidates: int = 4,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Print one table."""
    kinds = list(_kinds(prompts, paraphrases, most))
    known = sorted({one.text for one in read_prompts(prompts)})
    scorer = Judge(ClipEncoder(judge), known)
    reference = Reference(scorer, choose_stored(Storage(root).images, _side(recipe), 2560, ()))
    config = named(recipe)
    config = config.override({"transformer.train.steps": training_steps or config.transformer.train.steps})
    lasting = equal_steps(config, Storage(root))
    trained = {
        (seed, order): train(config, order, seed, lasting[order], root, texts)
        for seed in range(seeds)
        for order in ORDERS
    }
    generators = {
        order: [TextToImage(read_parts(trained[seed, order])) for seed in range(seeds)] for order in ORDERS
    }
    rows = _kept(json_file)
    for order, count in _rows(steps):
        if not any((row.order, row.steps) == (order, count) for row in rows):
            rows.append(measured(order, count, generators[order], kinds, scorer, reference, candidates))
            _keep(rows, json_file)
    rows = with_speeds(rows, {order: own[0] for order, own in generators.items()}, kinds[0].texts[:4])
    _keep(rows, json_file)
    show(rows, f"{seeds} trainings, best of {candidates}; training steps {lasting}")


def _rows(steps: str) -> list[tuple[str, int]]:
    """Each order with its numbers of steps; 0 stands for one step a code."""
    return [
        (order, count)
        for order in ORDERS
        for count in (map(int, steps.split(",")) if order == "any" else [0])
    ]


def _kept(json_file: Path | None) -> list[Scored]:
    if json_file is None or not json_file.exists():
        return []
    return [Scored(**row) for row in json.loads(json_file.read_text())]


def _keep(rows: list[Scored], json_file: Path | None) -> None:
    if json_file:
        json_file.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))


def _kinds(prompts: str, paraphrases: Path, most: int) -> Iterator[Prompts]:
    read = read_prompts(prompts)
    for kind in dict.fromkeys(one.split for one in read):
        chosen = some_texts(read, kind, most)
        yield Prompts(kind, chosen, [[text] for text in chosen])
    with paraphrases.open() as file:
        lines = list(csv.DictReader(file))[:most]
    yield Prompts("paraphrased", [one["prompt"] for one in lines], [one["names"].split("|") for one in lines])


def some_texts(read: Sequence[Prompt], split: str, most: int) -> list[str]:
    """Prompts of one split, chosen at random, but always the same.

    Args:
        read: Prompts of all splits.
        split: Of which.
        most: How many at the most.

    Returns:
        Their texts.
    """
    texts = sorted({one.text for one in read if one.split == split})
    return [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:most]]


def _side(recipe: str) -> int:
    return named(recipe).vqgan.model.image_size


def equal_steps(config: Recipe, storage: Storage) -> dict[str, int]:
    """Training steps of each order that take as long as the recipe's in raster order.

    They are measured once, and kept beside the checkpoints, so that trainings that were stopped go on.

    Args:
        config: The recipe.
        storage: The root with the token shards.

    Returns:
        The steps by order.
    """
    planned = config.transformer.train.steps
    kept = storage.path("orders", f"steps-{planned}.json")
    if not filesystem.exists(kept):
        manifest = read_manifest(storage.current("tokens", "the comparison").path)
        times = in_turn(*(_step(config, order, manifest) for order in ORDERS), rounds=4)
        ratios = [ratio(times[0], own) for own in times]
        lasting = {order: round(planned * own) for order, own in zip(ORDERS, ratios, strict=True)}
        filesystem.write_bytes(kept, json.dumps(lasting).encode())
    return dict(json.loads(filesystem.read_bytes(kept)))


def _step(config: Recipe, order: str, manifest: TokenManifest) -> Callable[[], None]:
    """A training step of the model, without its data."""
    device = torch.device(default_device())
    shape = config.transformer.model.model_copy(update={"order": order})
    model = Transformer(shape, manifest.codebook_size, manifest.grid, manifest.embedding_dim).to(device)
    optimizer, rows = adamw([model], 1e-4), config.transformer.train.batch_size
    codes = torch.randint(manifest.codebook_size, (rows, manifest.grid**2), device=device)
    embedding = F.normalize(torch.randn(rows, 1, manifest.embedding_dim, device=device), dim=-1)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device.type), attention_for(device):
            loss = generation_loss(model, codes, embedding)
        loss.backward()
        optimizer.step()

    return step


def train(config: Recipe, order: str, seed: int, steps: int, root: str, texts: str) -> str:
    """The checkpoint of a transformer; one that is there already is taken.

    Args:
        config: The recipe.
        order: Of the model.
        seed: Of the training.
        steps: Of the training.
        root: The root with the token shards; the checkpoints go into a folder of it.
        texts: Texts like the prompts.

    Returns:
        Its address.
    """
    given = {"model.order": order, "train.seed": seed, "train.steps": steps}
    own = config.override({f"transformer.{name}": value for name, value in given.items()}).transformer
    shards = Storage(root).current("tokens", "the comparison").path
    out = Storage(f"{root}/orders/{order}")
    return transformer.run(own, tokens=shards, out=out, tracker=NullTracker(), texts=texts).checkpoint


def measured(
    order: str,
    steps: int,
    generators: list[TextToImage],
    kinds: list[Prompts],
    scorer: Judge,
    reference: Reference,
    candidates: int,
) -> Scored:
    """Generate and score.

    Args:
        order: Of the models.
        steps: In which they generate; 0 for one a code.
        generators: The models of all trainings.
        kinds: The prompts.
        scorer: The judge.
        reference: Real images.
        candidates: For each image.

    Returns:
        The row of the table.
    """
    recall, score = dict[str, tuple[float, float]](), dict[str, tuple[float, float]]()
    images = list[Image.Image]()
    for kind in kinds:
        found, scores = [], []
        for generator in generators:
            rows = generator.generate(kind.texts, candidates=candidates, steps=steps)
            images += (made := [row[0] for row in rows])
            cosine = scorer.clip.encode_images(made) @ scorer.name_embeddings.T
            wanted = [[scorer.names.index(name) for name in names] for names in kind.names]
            best = [max(line[own]) for line, own in zip(cosine, wanted, strict=True)]
            found.append((cosine > np.array(best)[:, None]).sum(axis=1) < FOUND)
            scores.append(best)
        for target, values in ((recall, found), (score, scores)):
            of_prompts = np.mean(values, axis=0)
            target[kind.kind] = float(of_prompts.mean()), bootstrap(of_prompts).half_width
    kid = reference.distances(images)[f"kid{SUFFIX[CLIP]}"]
    return Scored(order, steps, recall, score, kid)


def with_speeds(rows: list[Scored], generators: dict[str, TextToImage], prompts: list[str]) -> list[Scored]:
    """Measure how many images a second each row generates, all rows in turn, without candidates.

    Args:
        rows: Of the table.
        generators: By order.
        prompts: What is generated at once.

    Returns:
        The rows with their speeds.
    """

    def generate(row: Scored) -> Callable[[], None]:
        return lambda: void(generators[row.order], prompts, row.steps)

    times = in_turn(*map(generate, rows), rounds=5)
    return [
        dataclasses.replace(row, images_per_second=len(prompts) / statistics.median(own))
        for row, own in zip(rows, times, strict=True)
    ]


def void(generator: TextToImage, prompts: list[str], steps: int) -> None:
    """Generate one image a prompt, for the timer."""
    generator.generate(prompts, candidates=1, steps=steps)


def show(rows: list[Scored], title: str) -> None:
    kinds = list(rows[0].recall)
    columns = [f"{kind}: {what}" for kind in kinds for what in ("recall@5", "CLIP score")]
    sheet = Table("order", "steps", *columns, "1000 KID", "images/s", box=None, title=title)
    for row in rows:
        scores = [
            f"{value[k][0]:.3f} ± {value[k][1]:.3f}" for k in kinds for value in (row.recall, row.clip_score)
        ]
        steps = str(row.steps or "one a code")
        sheet.add_row(row.order, steps, *scores, f"{1000 * row.kid:.2f}", f"{row.images_per_second:.2f}")
    Console(width=200).print(sheet)


if __name__ == "__main__":
    typer.run(main)
