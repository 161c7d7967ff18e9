"""`clipgen train` and `clipgen init`: from a folder of images to a model, without a run config."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipgen_core import logs
from clipgen_core.cli.options import ENDED, Command, Overrides, app, console
from clipgen_core.cli.train_stage import read_value
from clipgen_core.errors import ClipgenError
from clipgen_core.extras import needed_for
from clipgen_core.storage import DEFAULT_ROOT, Storage

if TYPE_CHECKING:
    from clipgen_core.proposal.run import Proposal

DAGSTER = """# DAGSTER_HOME for one machine: SQLite storage, no telemetry, one GPU step at a time.
nux:
  enabled: false
telemetry:
  enabled: false
concurrency:
  pools:
    default_limit: 1
"""

Folder = Annotated[str, typer.Argument(help="A folder of images, or an fsspec URL.")]
RunName = Annotated[str | None, typer.Option("--name", help="Of the model; by default the folder's.")]
RecipeName = Annotated[
    str, typer.Option("--recipe", help="One of {recipes}; auto: one that fits the machine.")
]
Clip = Annotated[
    str | None,
    typer.Option(help="hub:MODEL/PRETRAINED or local-dir:FOLDER; by default a public one if available."),
]
Captions = Annotated[
    str | None,
    typer.Option(
        help="A CSV file with the columns file, relative to it, and caption: trains a small CLIP, and gives "
        "the prompts of the evaluation."
    ),
]
Prompts = Annotated[
    str | None, typer.Option(help="Prompts of the evaluation, one a line or a CSV; by default chosen.")
]
Minutes = Annotated[
    float | None, typer.Option(min=1, help="How long the run may take; scales the steps of the recipe.")
]


@app.command(cls=Command)
def train(
    folder: Folder,
    name: RunName = None,
    recipe: RecipeName = "auto",
    clip: Clip = None,
    captions: Captions = None,
    prompts: Prompts = None,
    minutes: Minutes = None,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option(help="Say what would happen, and stop.")] = False,
) -> None:
    """Train a text-to-image model on a folder of images: CLIP, VQGAN, transformer, report.

    Everything is written under .clipgen. A run that was stopped goes on when it is started again.
    """
    proposal = _proposed(folder, name, recipe, clip, captions, prompts, minutes, overrides)
    if dry_run:
        return
    files = proposal.write()
    home = dagster_home()
    for job, file in files.items():
        execute(job, file, home)
    show(proposal.root, proposal.name)


@app.command(cls=Command)
def init(
    folder: Folder,
    name: RunName = None,
    recipe: RecipeName = "auto",
    clip: Clip = None,
    captions: Captions = None,
    prompts: Prompts = None,
    minutes: Minutes = None,
    overrides: Overrides = None,
) -> None:
    """Write the run configs that `clipgen train` would use, and nothing else."""
    proposal = _proposed(folder, name, recipe, clip, captions, prompts, minutes, overrides)
    for job, file in proposal.write().items():
        console.print(f"dagster job execute -m pipelines.definitions -j {job} -c {file}")


def _proposed(
    folder: str,
    name: str | None,
    recipe: str,
    clip: str | None,
    captions: str | None,
    prompts: str | None,
    minutes: float | None,
    overrides: list[str] | None,
) -> "Proposal":
    logs.line(f"looking at {folder} and at this machine")  # before imports that take seconds
    from clipgen_core.proposal import propose

    proposal = propose(
        folder,
        name=name,
        recipe=recipe,
        clip=clip,
        captions=captions,
        prompts=prompts,
        minutes=minutes,
        overrides=dict(read_value(text, "-o") for text in overrides or []),
    )
    console.print("\n".join(proposal.lines()))
    return proposal


def dagster_home() -> str:
    """The folder of the Dagster instance: DAGSTER_HOME, or `.clipgen/dagster`, which is created."""
    given = os.environ.get("DAGSTER_HOME")
    if given:
        return given
    home = (Path(DEFAULT_ROOT).parent / "dagster").resolve()
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        (home / "dagster.yaml").write_text(DAGSTER)
    return str(home)


def execute(job: str, file: Path, home: str) -> None:
    """Run a job of the pipeline in a process of its own. SIGTERM is passed on to it.

    Args:
        job: Its name.
        file: Its run config.
        home: The folder of the Dagster instance.

    Raises:
        ClipgenError: It failed; it has printed why.
        typer.Exit: It was interrupted.
    """
    with needed_for("`clipgen train`"):
        if importlib.util.find_spec("dagster") is None:
            raise ModuleNotFoundError("No module named 'dagster'", name="dagster")
    command = [sys.executable, "-m", "dagster", "job", "execute", "-m", "pipelines.definitions"]
    environment = os.environ | {"DAGSTER_HOME": home, "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen([*command, "-j", job, "-c", str(file)], env=environment)
    previous = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        status = process.wait()
    except KeyboardInterrupt:  # the process has got it, too, and saves what it has
        process.wait()
        raise typer.Exit(ENDED) from None
    finally:
        signal.signal(signal.SIGTERM, previous)
    if status:
        raise ClipgenError(
            f"{job} failed: what went wrong is above. Mend it and give the same command again; what is done "
            f"is not done twice. `DAGSTER_HOME={home} dagster dev -m pipelines.definitions` shows the run"
        )


def show(root: str, name: str | None = None) -> None:
    """Say how good the model is, where its images are, and what to do next.

    Args:
        root: The root of its artefacts.
        name: Of the registered model, if one was registered.
    """
    from clipgen_core.judging.summary import summary

    report = Storage(root).current("evaluation", "the summary").path
    for what, value in summary(f"{report}/metrics.json"):
        console.print(f"{what:50} {value}")
    console.print(f"\nimages  {report}/grid.png\nreport  {report}/report.html")
    if name:
        console.print(f"model   {_in_registry(root, name)}")
    console.print(f'\nnext:\n  clipgen generate "…" --root {root} -o image.png')
    console.print(f"  clipgen ui --root {root}")


def _in_registry(root: str, name: str) -> str:
    from clipgen_core.registry.champions import Registry
    from clipgen_core.tracking import registry_uri

    champion = Registry.at(registry_uri(), Storage(root), name).champion()
    if champion:
        return f"models:/{name}@champion, version {champion}"
    return f"models:/{name} has no champion: `clipgen promote --name {name} --root {root}` says why"
