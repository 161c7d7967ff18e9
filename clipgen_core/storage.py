"""Where artefacts live: paths under one root, atomic writes, and the pointers to the latest of each stage.

The root is a local folder or any fsspec URL. Knows nothing of what the artefacts hold.
"""

import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from fsspec import core
from fsspec.implementations.local import LocalFileSystem
from platformdirs import user_cache_path
from tenacity import Retrying, retry_if_not_exception_type, stop_after_attempt, wait_exponential_jitter

from clipgen_core.errors import ClipgenError
from clipgen_core.extras import needed_for
from clipgen_core.schema import Frozen, digest_of

DEFAULT_ROOT = ".clipgen/default"
DRAFT = ".draft-"
SAFE_PART = re.compile(r"[\w.@=+,-]+")
ATTEMPTS = 8  # of a remote call: about half a minute in all
UNUSED = 24 * 3600  # seconds after which a download removes another's copy
NO_FAULT = (
    ClipgenError,
    ValueError,
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    NotADirectoryError,
    IsADirectoryError,
)

P = ParamSpec("P")
R = TypeVar("R")


class Pointer(Frozen):
    """The latest finished artefact of a stage."""

    path: str
    digest: str


class Storage:
    """The artefacts of one pipeline.

    Raises:
        ClipgenError: a path part that is empty, hidden behind `..`, or holds a separator.
    """

    def __init__(self, root: str = DEFAULT_ROOT) -> None:
        self.root = root if "://" in root else str(Path(root).expanduser().resolve())

    def path(self, *parts: str) -> str:
        """`{root}/a/b/c`; no part can leave the root."""
        for part in parts:
            if not SAFE_PART.fullmatch(part) or part in (".", ".."):
                raise ClipgenError(f"{part!r} is no safe file name under {self.root}: rename it")
        return "/".join([self.root.rstrip("/"), *parts])

    @property
    def images(self) -> str:
        return self.path("images.lance")

    @property
    def rejects(self) -> str:
        return self.path("rejects.lance")

    @property
    def files(self) -> str:
        return self.path("files.lance")

    @property
    def copies(self) -> str:
        return self.path("copies.lance")

    def embeddings(self, clip_key: str) -> str:
        return self.path("embeddings", f"{clip_key}.lance")

    def duplicates(self, clip_key: str) -> str:
        return self.path("duplicates", f"{clip_key}.lance")

    def codes(self, making: str) -> str:
        return self.path("codes", f"{making}.lance")

    def tokens(self, vqgan_digest: str, clip_key: str, making: str) -> str:
        return self.path("tokens", f"{vqgan_digest}-{clip_key}-{making}")

    def checkpoints(self, stage: str, run: str) -> str:
        return self.path("checkpoints", stage, run)

    def report(self, run: str) -> str:
        return self.path("reports", run)

    def champions(self, model: str) -> str:
        return self.path("champions", f"{model}.lance")

    def current(self, stage: str, needed_for: str) -> Pointer:
        """The latest finished artefact of `stage`."""
        path = self.path("current", f"{stage}.json")
        if not exists(path):
            raise ClipgenError(
                f"there is no {stage} under {self.root} yet, which {needed_for} needs: "
                f"materialise {stage} first"
            )
        return Pointer.model_validate_json(read_bytes(path))

    def publish_current(self, stage: str, path: str, digest: str) -> None:
        pointer = Pointer(path=path, digest=digest).model_dump_json()
        write_bytes(self.path("current", f"{stage}.json"), pointer.encode())


def last_root(stage: str) -> str:
    """The root beside DEFAULT_ROOT in which `stage` was finished last; DEFAULT_ROOT where none was."""
    pointers = Path(DEFAULT_ROOT).parent.glob(f"*/current/{stage}.json")
    newest = max(pointers, key=lambda pointer: pointer.stat().st_mtime, default=None)
    return str(newest.parents[1]) if newest else DEFAULT_ROOT


def url_to_fs(url: str) -> tuple[Any, str]:
    """fsspec's filesystem for a URL, and the path on it.

    Raises:
        ClipgenError: the package for such URLs is not installed.
    """
    with needed_for(url):
        filesystem, path = core.url_to_fs(url)
    return filesystem, path


def is_local(url: str) -> bool:
    return isinstance(url_to_fs(url)[0], LocalFileSystem)


def retried(call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """A call to a store that may reset, throttle or cut short: tried again with growing pauses."""
    attempts = Retrying(
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential_jitter(multiplier=0.1, max=10, jitter=0.2),
        retry=retry_if_not_exception_type(NO_FAULT),
        reraise=True,
    )
    return attempts(call, *args, **kwargs)


def exists(url: str) -> bool:
    filesystem, path = url_to_fs(url)
    return bool(retried(filesystem.exists, path))


def read_bytes(url: str) -> bytes:
    """A file's content; on a remote store a body cut short is read again."""
    filesystem, path = url_to_fs(url)
    if isinstance(filesystem, LocalFileSystem):
        return Path(path).read_bytes()

    def whole() -> bytes:
        data: bytes = filesystem.cat_file(path)
        if len(data) != filesystem.info(path)["size"]:
            raise OSError(f"{url} came cut short")
        return data

    return retried(whole)


def write_bytes(url: str, data: bytes) -> None:
    """Write a file so that its name never shows a half-written content."""
    filesystem, path = url_to_fs(url)
    if not isinstance(filesystem, LocalFileSystem):
        retried(filesystem.pipe_file, path, data)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(target)


def publish_folder(draft: Path, url: str, marker: str) -> None:
    """Move a finished local folder to its final name.

    Locally one rename; on an object store the files first and `marker` last, so that a reader
    that asks for the marker never sees a part of it.
    """
    filesystem, path = url_to_fs(url)
    if isinstance(filesystem, LocalFileSystem):
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        retired = target.with_name(f"{DRAFT}{uuid.uuid4().hex}")
        if target.exists():
            target.rename(retired)
        draft.rename(target)
        shutil.rmtree(retired, ignore_errors=True)
        return
    files = sorted(p for p in draft.rglob("*") if p.is_file() and p.name != marker)
    for file in [*files, draft / marker]:
        retried(filesystem.put_file, str(file), f"{path}/{file.relative_to(draft).as_posix()}")


def draft_folder(url: str) -> tempfile.TemporaryDirectory[str]:
    """A scratch folder that `publish_folder` can rename into place: beside it when that is local."""
    if not is_local(url):
        return tempfile.TemporaryDirectory(prefix="clipgen-")
    parent = Path(url_to_fs(url)[1]).parent
    parent.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=DRAFT, dir=parent, ignore_cleanup_errors=True)


def clear_drafts(url: str) -> None:
    """Remove what a killed process left of its drafts in a folder that has one writer."""
    filesystem, path = url_to_fs(url)
    if isinstance(filesystem, LocalFileSystem) and Path(path).is_dir():
        for draft in Path(path).glob(f"{DRAFT}*"):
            shutil.rmtree(draft, ignore_errors=True)


def inside(folder: str, relative: str) -> str:
    """The path of a file that data names, refused when it would leave the folder."""
    parts = relative.replace("\\", "/").split("/")
    if not relative or relative.startswith("/") or ".." in parts or "://" in relative:
        raise ClipgenError(f"the file name {relative!r} leaves the folder {folder}: make it relative")
    return f"{folder.rstrip('/')}/{relative}"


def local_copy(url: str) -> Path:
    """A local path with the content of `url`, under its own name: itself when local, else a download, which
    stays in the user's cache and is used again while the store lists the same. A download removes the copies
    that nobody has used for a day."""
    filesystem, path = url_to_fs(url)
    if isinstance(filesystem, LocalFileSystem):
        return Path(path)
    filesystem.invalidate_cache()
    listing = retried(filesystem.find, path, detail=True)
    state = [(name, stamp(entry, entry["size"])) for name, entry in sorted(listing.items())]
    name = url.rstrip("/").rsplit("/", 1)[-1]
    copies = user_cache_path("clipgen") / "copies"
    target = copies / digest_of([url, state]) / name
    target.parent.mkdir(parents=True, exist_ok=True)
    os.utime(target.parent)
    if not target.exists():
        _remove_unused(copies)
        draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        retried(filesystem.get, path, str(draft), recursive=True)
        draft.replace(target)
    return target


def _remove_unused(copies: Path) -> None:
    for copy in copies.iterdir():
        with suppress(FileNotFoundError):  # another download was first
            if time.time() - copy.stat().st_mtime > UNUSED:
                shutil.rmtree(copy, ignore_errors=True)


def stamp(entry: Mapping[str, Any], size: int) -> str:
    """What changes when a file's content does, by the store's entry: its ETag, else size and time."""
    tag = entry.get("ETag") or entry.get("etag") or entry.get("md5Hash")
    return str(tag or f"{size}-{entry.get('LastModified') or entry.get('mtime') or entry.get('created')}")


def list_folder(url: str) -> list[str]:
    """Names directly under a folder, sorted; empty when it does not exist."""
    filesystem, path = url_to_fs(url)
    if not filesystem.exists(path):
        return []
    filesystem.invalidate_cache()
    return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in filesystem.ls(path, False))


def remove_folder(url: str) -> None:
    filesystem, path = url_to_fs(url)
    filesystem.rm(path, recursive=True)
