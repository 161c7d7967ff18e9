"""Local copies of files and folders in stores, in the user's cache. Knows no artefact and no root."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from platformdirs import user_cache_path

from clipgen_core.cache import cached, remove_unused
from clipgen_core.filesystem import retried, stamp, url_to_fs
from clipgen_core.schema import digest_of


def local_copy(url: str) -> Path:
    """A local path with the content of `url`: the path itself if it is local, else a download.

    Downloads stay in the user's cache and are used again as long as the store lists the same content and the
    copy has its files, each of its size; else it is fetched again. Each download removes the copies that were
    not used for a day.
    """
    filesystem, path = url_to_fs(url)
    if isinstance(filesystem, LocalFileSystem):
        return Path(path)
    filesystem.invalidate_cache()
    listing = retried(filesystem.find, path, detail=True)
    state = [(name, stamp(entry, entry["size"])) for name, entry in sorted(listing.items())]
    name = url.rstrip("/").rsplit("/", 1)[-1]
    copies = user_cache_path("clipgen") / "copies"
    folder = copies / digest_of([url, state])
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    if not (folder / name).exists():
        remove_unused(copies)

    def whole(copy: Path) -> bool:
        return all(_has(copy / file[len(path) :].strip("/"), entry) for file, entry in listing.items())

    def download(draft: Path) -> None:
        filesystem.get(path, str(draft), recursive=True)
        if not whole(draft):
            raise OSError(f"{url} was cut short, or changed while it was read")

    return cached(f"copies/{folder.name}", name, lambda draft: retried(download, draft), whole)


def _has(file: Path, entry: Mapping[str, Any]) -> bool:
    """Whether a file has the size that a store listed; some list the names of folders, too."""
    if entry.get("type") == "directory":
        return True
    return file.is_file() and entry["size"] in (None, file.stat().st_size)
