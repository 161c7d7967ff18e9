"""What a transformer gains by starting from the last one, when its token shards have grown by a fifth.

Trains a transformer on five sixths of the images of a root, then on all of them: from scratch and from that
one, in the same numbers of steps, which take the same time. The held-out images are always the same.

Run: python -m benchmarks.warm_start --root ROOT --texts texts.txt
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.table import Table

from clipgen_core import filesystem
from clipgen_core.data.tokens import publish, read_manifest, write_part
from clipgen_core.recipes import Recipe, named
from clipgen_core.stages import transformer
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker
from clipgen_core.training.provenance import GOAL

KEPT = 5 / 6  # then growing to all images is growing by a fifth


@dataclasses.dataclass(frozen=True)
class Trained:
    """A training on all images: its held-out loss before its steps, None from scratch, and after them."""

    start: str
    steps: int
    learning_rate: float
    seconds: float
    before: float | None
    loss: float


def main(
    root: Annotated[str, typer.Option(help="A root in which the stages up to token_shards have run.")],
    texts: Annotated[str, typer.Option(help="Texts like the prompts, one a line.")],
    steps: Annotated[int | None, typer.Option(help="Steps of the first training; the recipe's.")] = None,
    shares: Annotated[
        str, typer.Option(help="Schedules to compare, as shares of these steps.")
    ] = "0.1,0.25,1",
    rates: Annotated[
        str, typer.Option(help="Learning rates of warm starts: parts of the recipe's.")
    ] = "1,0.3",
    recipe: str = "demo",
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Print one table. Trainings that are there already are taken."""
    out = Storage(f"{root}/warm_start")
    whole = Storage(root).current("tokens", "the comparison").path
    chosen = named(recipe)
    chosen = chosen.override({"transformer.train.steps": steps or chosen.transformer.train.steps})
    first = train(chosen, first_images(whole, out), out, texts).checkpoint
    made = []
    for share in map(float, shares.split(",")):
        short = {"transformer.train.steps": max(int(share * chosen.transformer.train.steps), 1)}
        made.append(measured("scratch", chosen.override(short), whole, out, texts))
        for part in map(float, rates.split(",")):
            warm = short | {
                "transformer.start_from": first,
                "transformer.train.learning_rate": part * chosen.transformer.train.learning_rate,
            }
            made.append(measured("last one", chosen.override(warm), whole, out, texts))
    show(made)
    if json_file:
        json_file.write_text(json.dumps([dataclasses.asdict(row) for row in made], indent=2))


def first_images(shards: str, out: Storage) -> str:
    """Token shards of five sixths of the training images and of all held-out images.

    Args:
        shards: The folder of all of them.
        out: The root that gets the new ones.

    Returns:
        Their folder.
    """
    manifest, url = read_manifest(shards), out.tokens("five", "sixths", Path(shards).name)
    with filesystem.draft_folder(url) as scratch:
        draft = Path(scratch) / "shards"
        draft.mkdir()
        rows = pa.concat_tables(read(f"{shards}/{part.file}") for part in manifest.train)
        ids = list(dict.fromkeys(rows["id"].to_pylist()))
        kept = set(ids[: round(KEPT * len(ids))])
        part = write_part(
            draft, "part-train-00000.parquet", rows.filter([i in kept for i in rows["id"].to_pylist()])
        )
        for held_out in manifest.validation:
            (draft / held_out.file).write_bytes(filesystem.read_bytes(f"{shards}/{held_out.file}"))
        publish(draft, manifest.model_copy(update={"train": (part,)}), url)
    return url


def read(file: str) -> pa.Table:
    return pq.read_table(pa.BufferReader(filesystem.read_bytes(file)))


def train(recipe: Recipe, shards: str, out: Storage, texts: str) -> transformer.Result:
    return transformer.run(recipe.transformer, tokens=shards, out=out, tracker=NullTracker(), texts=texts)


def measured(start: str, recipe: Recipe, shards: str, out: Storage, texts: str) -> Trained:
    """Train on all images.

    Args:
        start: What the table calls the weights that it starts from.
        recipe: Its settings.
        shards: The folder of the token shards.
        out: The root that gets the checkpoints.
        texts: Texts like the prompts, one a line.

    Returns:
        Its row of the table.
    """
    fitted, settings = train(recipe, shards, out, texts).fitted, recipe.transformer.train
    return Trained(
        start,
        settings.steps,
        settings.learning_rate,
        settings.steps * settings.batch_size / fitted.images_per_second,
        next((row[GOAL] for row in fitted.history if row["step"] == 0), None),
        fitted.metrics[GOAL],
    )


def show(rows: list[Trained]) -> None:
    sheet = Table(
        "starts from", "steps", "learning rate", "seconds", "loss before", "held-out loss", box=None
    )
    for row in rows:
        before = "" if row.before is None else f"{row.before:.3f}"
        sheet.add_row(
            row.start,
            str(row.steps),
            f"{row.learning_rate:g}",
            f"{row.seconds:.0f}",
            before,
            f"{row.loss:.3f}",
        )
    Console(width=110).print(sheet)


if __name__ == "__main__":
    typer.run(main)
