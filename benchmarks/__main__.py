"""Run: python -m benchmarks [NAME ...] [--json FILE]"""

import dataclasses
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.gpu import PARTS, gpu
from benchmarks.timing import Row

TRAINING = ("training", "against_encoding", "sampling", "vqgan", "loader")
DATA = ("embedding", "rerun", "growth", "search")
NAMES = (*TRAINING, *DATA, "ingest", "compaction", "year", "scaling", "growing")


def main(
    names: Annotated[
        list[str] | None,
        typer.Argument(help=f"Which: {', '.join(NAMES)}; all if none. Or gpu, on a machine with a GPU."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows there too.")] = None,
    layers: Annotated[
        int,
        typer.Option(
            help="Layers of the paper's 24, for less memory; sampling takes twice as many of the 12 of `b`."
        ),
    ] = 6,
    batch: Annotated[int, typer.Option(help="Images a training step.")] = 8,
    part: Annotated[list[str] | None, typer.Option(help=f"Part of gpu: {', '.join(PARTS)}.")] = None,
) -> None:
    """Time ours beside a baseline and print a table of ratios."""
    unknown = set(names or ()) - {*NAMES, "gpu"}
    if unknown:
        raise typer.BadParameter(f"there is no benchmark {', '.join(unknown)}: choose of {', '.join(NAMES)}")
    if part and "gpu" not in (names or ()):
        raise typer.BadParameter(
            "--part is of the benchmark gpu: write `python -m benchmarks gpu --part ...`"
        )
    rows: list[Row] = []
    began = time.perf_counter()
    for name in track(names or NAMES, "benchmarks", console=Console(stderr=True), transient=True):
        for row in gpu(part or ()) if name == "gpu" else run(name, layers, batch):
            rows.append(row)
            if name == "gpu":  # where time may end before the table
                print(f"{time.perf_counter() - began:5.0f} s", _line(row), flush=True)
            if json_file:
                made = {"threads": torch.get_num_threads(), "rows": [dataclasses.asdict(row) for row in rows]}
                json_file.write_text(json.dumps(made, indent=2))
    sheet = Table("benchmark", "what", "measured", "bar", "detail", box=None)
    for row in rows:
        sheet.add_row(row.benchmark, row.what, f"{row.value:.2f}{row.unit}", row.bar, row.detail)
    Console(width=160).print(sheet)


def _line(row: Row) -> str:
    return f"{row.benchmark}: {row.what}: {row.value:.4g}{row.unit} ({row.bar}) {row.detail}"


def run(name: str, layers: int, batch: int) -> Iterable[Row]:
    """The rows of one benchmark.

    Args:
        name: Which, of NAMES.
        layers: Of the transformers.
        batch: Images of a training step.

    Returns:
        Its rows.
    """
    from benchmarks import (
        compaction,
        growing,
        ingest,
        loader,
        sampling,
        scaling,
        tables,
        transformer,
        vqgan,
        year,
    )

    if name in DATA:
        made: list[Row] = getattr(tables, name)()
        return made
    if name == "ingest":
        return ingest.ingest()
    if name == "compaction":
        return compaction.compaction()
    if name == "year":
        return year.year()
    if name == "growing":
        return growing.growing()
    if name == "scaling":
        return scaling.scaling()
    if name == "training":
        return transformer.training(layers, batch)
    if name == "against_encoding":
        return transformer.against_encoding(layers, batch)
    if name == "sampling":
        return sampling.sampling(min(2 * layers, 12))
    if name == "vqgan":
        return vqgan.vqgan(batch=2)
    return loader.loader(transformer.images_per_second(layers, batch))


if __name__ == "__main__":
    typer.run(main)
