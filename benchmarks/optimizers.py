"""AdamW against Muon at equal wall time, on the token shards of a root.

Each optimizer's speed is measured first; its schedule then fits the time it is given.

Run: python -m benchmarks.optimizers --root ROOT --texts texts.txt
"""

from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.timing import seconds
from clipgen_core.data.prompts import read_texts
from clipgen_core.data.tokens import TokenShards
from clipgen_core.data.transfer import moved
from clipgen_core.progress import track
from clipgen_core.recipes import named
from clipgen_core.stages.transformer import Config, TransformerTask
from clipgen_core.storage import Storage
from clipgen_core.training.provenance import GOAL
from clipgen_core.training.task import train_step

RATES = {"adamw": (5e-4, 1e-3, 2e-3), "muon": (2e-3, 4e-3, 8e-3)}
WARM_UP, TIMED = 2, 6


def main(
    root: Annotated[str, typer.Option(help="A root in which the stages up to token_shards have run.")],
    texts: Annotated[str, typer.Option(help="Texts like the prompts, one a line.")],
    minutes: Annotated[float, typer.Option(help="Training time of each.")] = 3.0,
    recipe: str = "demo",
) -> None:
    """Print held-out and training loss of each optimizer and learning rate."""
    shards, lines = TokenShards(Storage(root).current("tokens", "the comparison").path, 0), read_texts(texts)
    sheet = Table(
        "optimizer", "learning rate", "steps", "seconds", "training loss", "held-out loss", box=None
    )
    for optimizer, rates in RATES.items():
        for rate in rates:
            chosen = named(recipe).override(
                {"transformer.train.optimizer": optimizer, "transformer.train.learning_rate": rate}
            )
            steps = steps_in(minutes * 60, chosen.transformer, shards, lines)
            config = chosen.override({"transformer.train.steps": steps}).transformer
            taken, loss, held_out = fit(config, shards, lines)
            sheet.add_row(
                optimizer, f"{rate:g}", str(steps), f"{taken:.0f}", f"{loss:.3f}", f"{held_out:.3f}"
            )
    Console(width=110).print(sheet)


def steps_in(budget: float, config: Config, shards: TokenShards, texts: list[str]) -> int:
    """How many steps fit in `budget` seconds."""
    task = TransformerTask(config, shards, texts)
    optimizers = task.optimizers()
    for step in range(WARM_UP):
        train_step(task, optimizers, [moved(task.batch(step), task.device)], step, config.train)
    taken = seconds(
        lambda: [
            train_step(task, optimizers, [moved(task.batch(step), task.device)], step, config.train)
            for step in range(TIMED)
        ]
    )
    return max(int(budget * TIMED / taken), 1)


def fit(config: Config, shards: TokenShards, texts: list[str]) -> tuple[float, float, float]:
    """(seconds, mean training loss of the last tenth, held-out loss)."""
    task = TransformerTask(config, shards, texts)
    optimizers, losses = task.optimizers(), []

    def run() -> None:
        with track(config.train.optimizer, config.train.steps, "steps") as meter:
            for step in range(config.train.steps):
                task.model.train()
                figures = train_step(
                    task, optimizers, [moved(task.batch(step), task.device)], step, config.train
                )
                losses.append(float(figures["loss"]))
                meter.advance(1)

    taken = seconds(run)
    last = losses[-max(len(losses) // 10, 1) :]
    task.model.eval()
    with torch.no_grad():
        held_out = task.validate().metrics[GOAL]
    return taken, sum(last) / len(last), held_out


if __name__ == "__main__":
    typer.run(main)
