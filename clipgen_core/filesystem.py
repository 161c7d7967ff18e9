"""Files and folders on any fsspec filesystem: atomic writes, folders that appear whole. Knows no artefact."""

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from fsspec import core
from fsspec.implementations.local import LocalFileSystem
from tenacity import RetryCallState, Retrying, stop_after_attempt, wait_exponential_jitter

from clipgen_core.cache import DRAFT
from clipgen_core.errors import ClipgenError, first_line
from clipgen_core.extras import needed_for
from clipgen_core.stores import PATIENCE, is_unreachable, require_answer, without_credentials

ATTEMPTS = 8  # of a call to a remote store: about half a minute in all
FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_RETRIED = (  # answers of a store, not faults of the way there
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


def url_to_fs(url: str) -> tuple[Any, str]:
    """fsspec's filesystem for a URL, and the path on it.

    Raises:
        ClipgenError: There are no such URLs, the package for them is not installed, or the store is away.
    """
    require_answer(url)
    try:
        with needed_for(url):
            filesystem, path = core.url_to_fs(url)
    except ValueError as error:
        raise ClipgenError(f"{url} cannot be opened ({first_line(error)}): check the address") from error
    return filesystem, path


def is_local(url: str) -> bool:
    return isinstance(url_to_fs(url)[0], LocalFileSystem)


def retried(call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a store that may reset, throttle or cut short; a fault is retried with growing pauses.

    Args:
        call: What to call.
        args: Its arguments.
        kwargs: Its keyword arguments.

    Returns:
        What the call returns.

    Raises:
        Exception: That of the last attempt; at once one of NOT_RETRIED, and where credentials are missing;
            after PATIENCE if the store cannot be reached.
    """
    attempts = Retrying(
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential_jitter(multiplier=0.1, max=10, jitter=0.2),
        retry=_is_called_again,
        reraise=True,
    )
    return attempts(call, *args, **kwargs)


def _is_called_again(state: RetryCallState) -> bool:
    error = state.outcome.exception() if state.outcome else None
    if error is None or isinstance(error, NOT_RETRIED) or without_credentials(error):
        return False
    return (state.seconds_since_start or 0.0) < PATIENCE or not is_unreachable(error)


def exists(url: str) -> bool:
    filesystem, path = url_to_fs(url)
    return bool(retried(filesystem.exists, path))


def read_bytes(url: str) -> bytes:
    """A file's content; from a remote store, a body that was cut short is read again."""
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
    """Write a file so that its name never stands for half of its content.

    Args:
        url: A local path or an fsspec URL.
        data: The content.
    """
    filesystem, path = url_to_fs(url)
    if not isinstance(filesystem, LocalFileSystem):
        retried(filesystem.pipe_file, path, data)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def modified(url: str) -> float:
    """When a file was last written, in seconds since 1970."""
    filesystem, path = url_to_fs(url)
    return float(retried(filesystem.modified, path).timestamp())


def publish_file(draft: Path, url: str) -> None:
    """Move a finished local file to its final name.

    Args:
        draft: The file, in a folder of `draft_folder`.
        url: Its final name.
    """
    filesystem, path = url_to_fs(url)
    if not isinstance(filesystem, LocalFileSystem):
        retried(filesystem.put_file, str(draft), path)
        return
    _let_others_read([draft])
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(path)


def publish_folder(draft: Path, url: str, marker: str) -> None:
    """Move a finished local folder to its final name.

    Locally this is one rename; to an object store the files go first and the marker last, so that a reader
    that looks for the marker never sees a part of the folder.

    Args:
        draft: The folder, under a name of its own.
        url: Its final name.
        marker: The file in it that says that the folder is whole.
    """
    filesystem, path = url_to_fs(url)
    if isinstance(filesystem, LocalFileSystem):
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        _let_others_read(one for one in draft.rglob("*") if one.is_file())
        retired = target.with_name(f"{DRAFT}{uuid.uuid4().hex}")
        if target.exists():
            target.rename(retired)
        draft.rename(target)
        shutil.rmtree(retired, ignore_errors=True)
        return
    files = sorted(p for p in draft.rglob("*") if p.is_file() and p.name != marker)
    for file in [*files, draft / marker]:
        retried(filesystem.put_file, str(file), f"{path}/{file.relative_to(draft).as_posix()}")


def _let_others_read(files: Iterable[Path]) -> None:
    """Give files the mode of a new file: safetensors writes them for their owner alone."""
    with tempfile.TemporaryDirectory() as scratch:
        new = Path(scratch) / "new"
        new.touch()
        mode = new.stat().st_mode & 0o777
    for file in files:
        if file.stat().st_mode & mode != mode:
            with suppress(PermissionError):  # mounts of some stores have modes of their own
                file.chmod(mode)


@contextmanager
def room_needed(sentence: str) -> Iterator[None]:
    """Say in one sentence that a disk is full, which writers report in several ways.

    Args:
        sentence: What could not be written, what is left, and what to do.

    Yields:
        Nothing.

    Raises:
        ClipgenError: There was no space left while the `with` was written.
    """
    try:
        yield
    except Exception as error:
        if no_space_left(error):
            raise ClipgenError(sentence) from error
        raise


def no_space_left(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is that of a full disk or an exhausted quota."""
    while error is not None:
        if getattr(error, "errno", None) in FULL or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def draft_folder(url: str) -> tempfile.TemporaryDirectory[str]:
    """A scratch folder that `publish_folder` can rename into place: beside `url` if that is local."""
    if not is_local(url):
        return tempfile.TemporaryDirectory(prefix="clipgen-")
    parent = Path(url_to_fs(url)[1]).parent
    parent.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=DRAFT, dir=parent, ignore_cleanup_errors=True)


def clear_drafts(url: str) -> None:
    """Remove the drafts that a killed process left in a folder that has one writer."""
    filesystem, path = url_to_fs(url)
    if isinstance(filesystem, LocalFileSystem) and Path(path).is_dir():
        for draft in Path(path).glob(f"{DRAFT}*"):
            shutil.rmtree(draft, ignore_errors=True)


def inside(folder: str, relative: str) -> str:
    """The path of a file that is named by data.

    Args:
        folder: Where the file must be.
        relative: Its name, relative to the folder.

    Returns:
        The path.

    Raises:
        ClipgenError: The name would leave the folder.
    """
    parts = relative.replace("\\", "/").split("/")
    if not relative or relative.startswith("/") or ".." in parts or "://" in relative:
        raise ClipgenError(f"the file name {relative!r} leaves the folder {folder}: make it relative")
    return f"{folder.rstrip('/')}/{relative}"


def stamp(entry: Mapping[str, Any], size: int) -> str:
    """What changes when a file's content does: its ETag, else its size and time.

    Args:
        entry: The store's entry of the file, as fsspec gives it.
        size: Of the file, in bytes.

    Returns:
        A string that can be compared.
    """
    tag = entry.get("ETag") or entry.get("etag") or entry.get("md5Hash")
    return str(tag or f"{size}-{entry.get('LastModified') or entry.get('mtime') or entry.get('created')}")


def list_folder(url: str) -> list[str]:
    """Names directly under a folder, sorted; empty when it does not exist."""
    filesystem, path = url_to_fs(url)
    if not filesystem.exists(path):
        return []
    filesystem.invalidate_cache()
    return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in filesystem.ls(path, False))


def remove_folder(url: str, marker: str) -> None:
    """Remove a folder so that no reader takes what is left of it for whole, even if this process is killed.

    Args:
        url: The folder, as `publish_folder` wrote it.
        marker: The file that says that it is whole.
    """
    filesystem, path = url_to_fs(url)
    if isinstance(filesystem, LocalFileSystem):
        retired = Path(path).with_name(f"{DRAFT}{uuid.uuid4().hex}")
        Path(path).rename(retired)
        shutil.rmtree(retired, ignore_errors=True)
        return
    retried(filesystem.rm_file, f"{path}/{marker}")
    with suppress(FileNotFoundError):  # an attempt that seemed to fail had removed it
        retried(filesystem.rm, path, recursive=True)
