"""What is written once to the user's cache, by whichever process needs it first. Knows no artefact."""

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from platformdirs import user_cache_path

DRAFT = ".draft-"  # what names of unfinished folders start with
UNUSED = 24 * 3600  # seconds after which an unused copy is removed


def cached(folder: str, name: str, write: Callable[[Path], object]) -> Path:
    """A file or folder in the user's cache that is written once, and appears whole or not at all.

    Args:
        folder: Where it is in the cache.
        name: Its name, which stands for its content.
        write: Writes it to the path that it is given.

    Returns:
        Its path.
    """
    target = user_cache_path("clipgen") / folder / name
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=DRAFT, dir=target.parent, ignore_cleanup_errors=True) as scratch:
        draft = Path(scratch) / name
        write(draft)
        try:
            draft.replace(target)
        except OSError:
            if not target.is_dir():  # else another process was first
                raise
    return target


def remove_unused(folder: Path) -> None:
    """Remove what was not used for a day."""
    for copy in folder.iterdir():
        with suppress(FileNotFoundError):  # another process has removed it
            if time.time() - copy.stat().st_mtime > UNUSED:
                shutil.rmtree(copy, ignore_errors=True)
