"""Notes under the root that images are being forgotten, so that a call that was killed can be repeated."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

from clipgen_core.filesystem import exists, retried, url_to_fs, write_bytes
from clipgen_core.schema import digest_of
from clipgen_core.storage import Storage


def was_begun(out: Storage, names: Collection[str]) -> bool:
    """Whether a call that forgets images of these names was begun and did not end.

    Args:
        out: The root.
        names: Ids and URIs.

    Returns:
        Whether `noted` was entered with them and not left.
    """
    return exists(_note(out, names))


@contextmanager
def noted(out: Storage, names: Collection[str]) -> Iterator[None]:
    """Note under the root that images are forgotten, until the `with` ends without an error.

    Args:
        out: The root.
        names: Ids and URIs.

    Yields:
        Nothing.
    """
    note = _note(out, names)
    write_bytes(note, b"")
    yield
    filesystem, path = url_to_fs(note)
    with suppress(FileNotFoundError):  # another call with the same names has ended
        retried(filesystem.rm_file, path)


def _note(out: Storage, names: Collection[str]) -> str:
    return out.path("forgetting", digest_of(sorted(names)))
