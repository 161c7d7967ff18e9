"""The entries of local folders. Knows nothing of what the files are."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from clipgen_core.errors import ClipgenError, first_line

UNREADABLE = (
    "unreadable"  # the stamp of entries, and the reason of rejects, that are tried again at every run
)


class Entry(NamedTuple):
    """An entry of a folder: its name, whether it is a folder, its size and its stamp."""

    name: str
    is_folder: bool
    size: int
    stamp: str


def place(path: str) -> tuple[int, int] | None:
    """What is the same for all links to a local folder; None if it was removed in the meantime."""
    try:
        state = Path(path).stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino


def leads_up(link: str) -> bool:
    """Whether a link to a folder leads to one that holds the link, by its real path or as it was reached."""
    here = Path(link).parent
    real = here.resolve()
    above = {here, *here.parents, real, *real.parents}
    return place(link) in {place(str(one)) for one in above}


def scan_local(path: str) -> Iterator[Entry]:
    """A local folder's entries: folders, files, links to them, broken links; nothing that blocks a reader,
    and no link to a folder that holds the link.

    Raises:
        PermissionError: The folder may not be read.
        ClipgenError: It cannot be listed.
    """
    try:
        with os.scandir(path) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return  # it was removed in the meantime
    except PermissionError:
        raise
    except OSError as error:
        raise ClipgenError(
            f"the folder {path} could not be listed ({first_line(error)}): run again"
        ) from error
    for entry in entries:
        try:
            state = entry.stat()
        except OSError:
            yield Entry(entry.name, False, 0, UNREADABLE)
            continue
        folder = stat.S_ISDIR(state.st_mode)
        if folder and entry.is_symlink() and leads_up(entry.path):
            continue
        if folder or stat.S_ISREG(state.st_mode):
            yield Entry(entry.name, folder, state.st_size, f"{state.st_size}-{state.st_mtime_ns}")


def base(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]
