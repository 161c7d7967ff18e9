"""Where a model may be loaded from: files, folders, the registry and the Hugging Face Hub.

Knows addresses; knows nothing of how a generator is loaded.
"""

import re
from pathlib import Path, PurePath

from clipgen_core import filesystem, tracking
from clipgen_core.downloads import local_copy
from clipgen_core.errors import ClipgenError, first_line
from clipgen_core.generation.model_file import unpacked
from clipgen_core.generation.parts import FILE
from clipgen_core.training.checkpoint import MARKER, WEIGHTS

REGISTRY, HUB = "models:/", "hf://"
ENDINGS = (".clipgen", ".safetensors")


def folder_of(source: str) -> str:
    """The generator folder or the checkpoint that a source stands for, as `read_parts` takes it.

    Args:
        source: A model file, the folder of one, a generator folder, a checkpoint, `models:/NAME@ALIAS` or
            `hf://ORG/NAME`.

    Raises:
        ClipgenError: There is no such model, or its file is damaged.
    """
    if source.startswith(REGISTRY):
        return str(tracking.download_registered(source))
    if source.startswith(HUB):
        return str(unpacked(_fetched(source)))
    if source.endswith(ENDINGS) or Path(source).is_file():
        if not filesystem.exists(source):
            raise ClipgenError(f"there is no file {source}: check the path")
        return source if Path(source).is_dir() else str(unpacked(local_copy(source)))
    if _exported(source):
        return str(unpacked(local_copy(f"{source}/{WEIGHTS}")))
    return source


def end_of(path: str, depth: int = 1) -> str:
    """The end of a model's path, which names it; that of a checkpoint `step-N` has the name of its training.

    Args:
        path: Of the model.
        depth: Of how many parts, at least.

    Returns:
        The parts, joined by slashes.
    """
    parts = PurePath(path).parts
    return "/".join(parts[-max(depth, 2 if parts[-1].startswith("step-") else 1) :])


def _exported(folder: str) -> bool:
    """Whether a folder was written by `clipgen export --layout huggingface`."""
    without = not any(filesystem.exists(f"{folder}/{name}") for name in (FILE, MARKER))
    return without and filesystem.exists(f"{folder}/{WEIGHTS}")


def _fetched(source: str) -> Path:
    """The model file of a repository of the Hugging Face Hub, which stays in the Hub's own cache."""
    from huggingface_hub import hf_hub_download

    found = re.fullmatch(r"([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?/?", source.removeprefix(HUB))
    if not found:
        raise ClipgenError(f"{source} names no repository: write it as {HUB}ORG/NAME")
    try:
        return Path(hf_hub_download(found[1], WEIGHTS, revision=found[2]))
    except Exception as error:
        raise ClipgenError(
            f"{source} cannot be fetched ({first_line(error)}): check the name and the network, or log in "
            "with `hf auth login` if it is private"
        ) from error
