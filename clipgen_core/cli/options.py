"""What the commands share: the application, its options, and how errors are shown."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from clipgen_core import __version__
from clipgen_core.cli.faults import fault
from clipgen_core.errors import ClipgenError, Interrupted
from clipgen_core.extras import needed_for
from clipgen_core.storage import Storage, last_root

# without markup: names may hold [brackets]
console = Console(markup=False, highlight=False, soft_wrap=True)
errors = Console(markup=False, highlight=False, soft_wrap=True, stderr=True)
BAD_INPUT = 2
ENDED = 128 + 2  # as a shell reports Ctrl-C
STOPPED = 128 + 15  # as a shell reports SIGTERM

Root = Annotated[
    str | None,
    typer.Option(
        envvar="CLIPGEN_ROOT",
        help="Where artefacts live: a folder or an fsspec URL; by default the newest root in ./.clipgen.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="models:/clip-gen@candidate, a model file (model.clipgen), hf://ORG/NAME, a generator folder or "
        "a transformer checkpoint; by default the newest in ./.clipgen.",
    ),
]

Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        help="A model to offer, as for generate; may be repeated. By default the champion and "
        "candidate of the root, its newest model, and the champion of clip-gen, as far as they exist.",
    ),
]

Seed = Annotated[int, typer.Option(help="The same seed gives the same images.")]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        help="The PNG file to write, over an older one; by default the first of out.png, out-2.png and so on "
        "that does not exist.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

Guidance = Annotated[
    float | None, typer.Option(help="Strength of guidance; higher follows the input more, 1 is off.")
]
Steps = Annotated[
    int | None, typer.Option(help="Steps of a model of any order: fewer are faster; 0 for its default.")
]
Temperature = Annotated[float | None, typer.Option(help="Lower is safer, higher is more varied.")]
TopK = Annotated[int | None, typer.Option(help="Sample from the k likeliest codes only; 0 for all.")]
TopP = Annotated[
    float | None, typer.Option(help="Sample from the fewest codes that hold this probability; 1 for all.")
]
Candidates = Annotated[
    int | None, typer.Option(help="Images sampled for each one kept; CLIP keeps the best.")
]

RecipeName = Annotated[str, typer.Option("--recipe", help="One of {recipes}.")]

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "--override",
        "-o",
        help="A setting, such as vqgan.train.steps=900; may be repeated. `clipgen settings` lists them.",
    ),
]

Name = Annotated[str, typer.Option("--name", help="The registered model.")]

app = typer.Typer(
    help="Text-to-image from unlabelled images (CLIP-GEN): embed, search, train, generate.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"clipgen {__version__}")
        raise typer.Exit


@app.callback()
def clipgen(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version, and stop.")
    ] = False,
) -> None:
    pass


class Command(typer.core.TyperCommand):
    """A command whose bad input, and what a disk or store refuses, is one sentence and exit code 2."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, with the names of the recipes in place of `{recipes}`: only a help loads them.

        Args:
            ctx: Of Click.
            formatter: Of Click, which the help is written to.
        """
        from clipgen_core.recipes import RECIPES

        for option in self.params:
            if isinstance(option, typer.core.TyperOption) and option.help:
                option.help = option.help.replace("{recipes}", ", ".join(RECIPES))
        super().format_help(ctx, formatter)

    def invoke(self, ctx: Any) -> Any:
        try:
            with needed_for(f"`clipgen {self.name}`"):
                return super().invoke(ctx)
        except ClipgenError as error:
            said, code = str(error), STOPPED if isinstance(error, Interrupted) else BAD_INPUT
        except KeyboardInterrupt:
            errors.print("stopped")
            raise typer.Exit(ENDED) from None
        except Exception as error:
            sentence = fault(error, ctx.params.get("root"), _in_stores(ctx.params))
            if sentence is None:
                raise
            said, code = sentence, BAD_INPUT
        errors.print(Text("error:", style="bold red"), said)
        raise typer.Exit(code)


def _in_stores(params: dict[str, Any]) -> list[str]:
    """The addresses in stores that a command was given."""
    return [value for value in params.values() if isinstance(value, str) and "://" in value]


def last_model(root: str | None) -> str:
    """The newest model under a root.

    Raises:
        ClipgenError: There is none.
    """
    out = Storage(root or last_root("transformer"))
    try:
        return out.current("transformer", "generating without --model").path
    except ClipgenError as error:
        raise ClipgenError(
            f"there is no model under {out.root}: name one by --model, or its --root"
        ) from error


def is_file(path: str) -> bool:
    """Whether there is such a file; False for a text that is too long for a path."""
    try:
        return Path(path).is_file()
    except OSError:
        return False


def read_image(file: Path) -> Any:
    """An image file that was named on the command line.

    Raises:
        ClipgenError: There is none, or it cannot be decoded.
    """
    from clipgen_core.data.decode import decode
    from clipgen_core.data.rejected import Rejected

    if not is_file(str(file)):
        raise ClipgenError(f"there is no file {file}: check the path")
    try:
        return decode(file.read_bytes()).image
    except (OSError, Rejected) as error:
        raise ClipgenError(f"{file} is no usable image ({error}): give another") from error
