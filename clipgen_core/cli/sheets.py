"""What the commands share that generate images: their settings, their progress, and the file they write."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipgen_core.cli.options import console
from clipgen_core.errors import ClipgenError
from clipgen_core.progress import Meter

if TYPE_CHECKING:  # commands without images start without torch
    from torch import Tensor

    from clipgen_core.generation.requests import Generated


def shown_by(meter: Meter) -> "Callable[[Tensor], None]":
    """An `on_step` that shows how many codes of an image are known, in the mean."""
    return lambda codes: meter.advance(int((codes >= 0).sum()) // len(codes) - meter.done)


def given(**settings: Any) -> dict[str, Any]:
    """The sampling settings that were given; the others keep the model's defaults."""
    return {name: value for name, value in settings.items() if value is not None}


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


def write_sheet(rows: "list[list[Generated]]", output: Path, parameters: Mapping[str, Any]) -> None:
    """Write one row of images a request, as a PNG file that says how it was generated.

    Args:
        rows: The images of each request.
        output: The file.
        parameters: How they were generated.

    Raises:
        ClipgenError: The file cannot be written.
    """
    from clipgen_core.data.pixels import grid, png_bytes, with_parameters
    from clipgen_core.filesystem import write_bytes

    sheet = grid([one.image for row in rows for one in row], columns=len(rows[0]))
    try:
        write_bytes(str(output), png_bytes(with_parameters(sheet, parameters)))
    except OSError as error:
        raise ClipgenError(
            f"{output} cannot be written ({error.strerror or error}): make room, or choose another --output"
        ) from error
    console.print(f"wrote {output} ({sheet.width}x{sheet.height})")
