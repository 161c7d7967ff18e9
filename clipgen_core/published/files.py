"""Reads published weight files: state dicts of PyTorch, of PyTorch Lightning, and safetensors.

Nothing that is pickled in a file is ever run: classes beside the weights are replaced by empty ones.
"""

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clipgen_core.errors import ClipgenError, first_line

State = dict[str, Tensor]
HARMLESS = (
    "argparse.Namespace",
    "builtins.dict",
    "builtins.int",
    "builtins.list",
    "collections.defaultdict",
    "lightning.",
    "lightning_fabric.",
    "omegaconf.",
    "pytorch_lightning.",
    "typing.Any",
)  # of other classes, the user decides
STARTS = (b"PK", b"\x80")  # a zip archive, or a pickle in files from before PyTorch 1.6
WHERE = ("state_dict", "ema", "model", "module")  # the weights inside a file; averaged ones come first
ADVICE = "download the file again, or use the published file unchanged"


class Ignored:
    """Takes the place of a class whose objects lie beside the weights, and keeps nothing of them."""

    def __new__(cls, *_: object) -> "Ignored":
        return super().__new__(cls)

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def read_state_dict(file: Path) -> State:
    """Read the weights of a file: those in floating point as float32, others as they are.

    Where a file holds averaged weights beside the trained ones, as LlamaGen's do (`ema`), these are read.

    Raises:
        ClipgenError: The file does not exist, cannot be read safely, or holds no state dict.
    """
    if not file.is_file():
        raise ClipgenError(f"there is no file {file}: check the path")
    if not file.stat().st_size:
        raise ClipgenError(f"{file} is empty: {ADVICE}")
    state = _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickled(file)
    for key in WHERE:
        state = state[key] if isinstance(state, dict) and isinstance(state.get(key), dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ClipgenError(f"{file} holds no state dict: {ADVICE}")
    return {str(name): value.float() if value.is_floating_point() else value for name, value in state.items()}


def _read_safetensors(file: Path) -> Any:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ClipgenError(f"{file} is no whole safetensors file ({first_line(error)}): {ADVICE}") from error


def _read_pickled(file: Path) -> Any:
    with file.open("rb") as opened:
        if not opened.read(2).startswith(STARTS):
            raise ClipgenError(f"{file} is no file of PyTorch, by its first bytes: {ADVICE}")
    foreign = _classes(file)
    unknown = sorted(name for name in foreign if not name.startswith(HARMLESS))
    stand_ins: list[Any] = [(type(name.rpartition(".")[2], (Ignored,), {}), name) for name in foreign]
    try:
        if unknown:
            raise pickle.UnpicklingError(f"it holds {unknown[0]}")
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles by other programs, which the error says
            return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
        if foreign:
            raise ClipgenError(
                f"{file} cannot be read safely, because it holds Python objects ({(unknown or foreign)[0]}) "
                "beside its weights: where you trust it, load it with PyTorch and save its state dict alone"
            ) from error
        raise ClipgenError(f"{file} cannot be read safely ({_reason(error)}): {ADVICE}") from error


def _reason(error: Exception) -> str:
    """Why PyTorch did not read a file, without its advice to read it unsafely."""
    if isinstance(error, RuntimeError) and not re.search("weights_only|magic number", str(error)):
        return first_line(error)
    return "it is cut short" if isinstance(error, EOFError) else "it is no checkpoint of weights alone"


def _classes(file: Path) -> list[str]:
    """The classes in a file that are not PyTorch's; none are looked for in files from before PyTorch 1.6."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except (RuntimeError, ValueError, pickle.UnpicklingError):
        return []  # reading it says what is wrong
