"""What is written once to the user's cache, by whichever process needs it first. Knows no artefact."""

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from platformdirs import user_cache_path

DRAFT = ".draft-"  # what names of unfinished folders start with
SEAL = "files.sha256"  # the file in a folder that holds the digest of the others
UNUSED = 24 * 3600  # seconds after which an unused copy is removed


def cached(
    folder: str,
    name: str,
    write: Callable[[Path], object],
    usable: Callable[[Path], bool] = Path.exists,
) -> Path:
    """A file or folder in the user's cache that is written once, and appears whole or not at all.

    Args:
        folder: Where it is in the cache.
        name: Its name, which stands for its content.
        write: Writes it to the path that it is given.
        usable: Whether what is there can be used; if not, it is written anew.

    Returns:
        Its path.
    """
    target = user_cache_path("clipgen") / folder / name
    if usable(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=DRAFT, dir=target.parent, ignore_cleanup_errors=True) as scratch:
        draft = Path(scratch) / name
        write(draft)
        if target.exists() and not usable(target):
            target.rename(Path(scratch) / "unusable")
        try:
            draft.replace(target)
        except OSError:
            if not (target.is_dir() and usable(target)):  # else another process was first
                raise
    return target


def seal(folder: Path) -> None:
    """Note the content of a finished folder, for `unchanged`."""
    (folder / SEAL).write_text(_digest(folder))


def unchanged(folder: Path) -> bool:
    """Whether a folder holds what it held when it was sealed."""
    try:
        return (folder / SEAL).read_bytes() == _digest(folder).encode()
    except OSError:  # a file is missing, or may not be read
        return False


def _digest(folder: Path) -> str:
    """A SHA-256 over the names and contents of all files in a folder but the seal."""
    combined = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / SEAL:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            combined.update(f"{content} {path.relative_to(folder).as_posix()}\n".encode())
    return combined.hexdigest()


def remove_unused(folder: Path) -> None:
    """Remove what was not used for a day."""
    for copy in folder.iterdir():
        with suppress(FileNotFoundError):  # another process has removed it
            if time.time() - copy.stat().st_mtime > UNUSED:
                shutil.rmtree(copy, ignore_errors=True)
