"""What the commands share that generate images: their settings, their progress, and the file they write."""

import itertools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipgen_core import __version__
from clipgen_core.cli.options import console, last_model
from clipgen_core.errors import ClipgenError
from clipgen_core.progress import Meter

if TYPE_CHECKING:  # commands without images start without torch
    from torch import Tensor

    from clipgen_core.generation.generator import TextToImage
    from clipgen_core.generation.requests import Generated


def shown_by(meter: Meter) -> "Callable[[Tensor], None]":
    """An `on_step` that shows how many codes of an image are known, in the mean."""
    return lambda codes: meter.advance(int((codes >= 0).sum()) // len(codes) - meter.done)


def given(**settings: Any) -> dict[str, Any]:
    """The sampling settings that were given; the others keep the model's defaults."""
    return {name: value for name, value in settings.items() if value is not None}


def chosen(output: Path | None, *inputs: Path) -> Path:
    """The PNG file to write: the given one, or one that does not exist yet.

    Args:
        output: The given one.
        inputs: Files that the command reads.

    Returns:
        The file.

    Raises:
        ClipgenError: It cannot be written, or is an input.
    """
    names = itertools.chain([Path("out.png")], (Path(f"out-{number}.png") for number in itertools.count(2)))
    output = output or next(name for name in names if not name.exists())
    require_writable(output)
    if output.resolve() in [file.resolve() for file in inputs]:
        raise ClipgenError(f"{output} is read and would be written over: choose another --output")
    return output


def loaded(model: str | None, root: str | None) -> "tuple[TextToImage, str]":
    """The generator of a command, and what its images say they are from.

    Args:
        model: As it was given.
        root: Whose newest model is used if none was given.

    Returns:
        Both.

    Raises:
        ClipgenError: There is no such model.
    """
    source = model or last_model(root)
    said = origin(source)

    from clipgen_core.generation.generator import TextToImage

    return TextToImage.from_pretrained(source), said


def origin(model: str) -> str:
    """What an image says it is from: the version of the registry, else the end of the model's address."""
    if model.startswith("models:/"):
        from clipgen_core.tracking import describe

        return f"{model.partition('@')[0]}/{describe(model)['version']}" if "@" in model else model
    if model.startswith("hf://"):
        return model
    from clipgen_core.generation.sources import end_of

    return end_of(model)


def require_writable(output: Path, ending: str = ".png") -> None:
    """Check before the work that its result can be written.

    Args:
        output: The file.
        ending: That its name must have.

    Raises:
        ClipgenError: It cannot.
    """
    if not output.resolve().parent.is_dir():
        raise ClipgenError(f"{output.parent} does not exist: create it, or choose another --output")
    if output.is_dir():
        raise ClipgenError(f"{output} is a folder: choose another --output")
    try:
        with tempfile.TemporaryFile(dir=output.resolve().parent):
            pass
    except OSError as error:
        raise ClipgenError(f"no file can be written to {output.parent}: choose another --output") from error
    if output.suffix.lower() != ending:
        written = ending.removeprefix(".").upper()
        raise ClipgenError(f"{output} does not end in {ending}: a {written} file is written there")


def write_sheet(
    rows: "list[list[Generated]]", output: Path, parameters: Mapping[str, Any], quiet: bool = False
) -> None:
    """Write one row of images a request, as a PNG file that says how it was generated.

    Args:
        rows: The images of each request.
        output: The file.
        parameters: How they were generated.
        quiet: Whether not to print the name of the file.

    Raises:
        ClipgenError: The file cannot be written.
    """
    from clipgen_core.data.pixels import grid, png_bytes, with_parameters
    from clipgen_core.filesystem import write_bytes

    sheet = grid([one.image for row in rows for one in row], columns=len(rows[0]))
    try:
        made = {**parameters, "software": f"clipgen {__version__}"}
        write_bytes(str(output), png_bytes(with_parameters(sheet, made)))
    except OSError as error:
        raise ClipgenError(
            f"{output} cannot be written ({error.strerror or error}): make room, or choose another --output"
        ) from error
    if not quiet:
        console.print(f"wrote {output} ({sheet.width}x{sheet.height})")
