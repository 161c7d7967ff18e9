"""Faults of disks and stores in a sentence: what failed, why, and what to do.

Knows the errors of Python, Lance and botocore, which may not be installed; knows nothing of what was read.
"""

import errno
import io
import re
from collections.abc import Sequence

from clipgen_core.errors import reason_of
from clipgen_core.filesystem import no_space_left
from clipgen_core.stores import without_credentials
from clipgen_core.tracking import without_password

LANCE = "LanceError(IO): "
NOISE = re.compile(
    r"LanceError\(IO\): |Generic \w+ error: | in [\d.]+m?s, after .*?(?= - )|,? \S+\.rs:[\d:]+.*"
)
NO_FAULTS = (BrokenPipeError, io.UnsupportedOperation)  # although they are errors of the system
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
OF_REFUSALS = re.compile(rf"os error ({'|'.join(map(str, REFUSED))})\)|AccessDenied|40[13] Forbidden|denied")


def fault(error: BaseException, root: str | None, places: Sequence[str]) -> str | None:
    """Say an error that is a fault of a disk or a store.

    Args:
        error: Any error.
        root: The root, where it was named: Lance's tables are under it.
        places: Addresses in stores that were to be read or written.

    Returns:
        One sentence; None if it is another error.
    """
    of_lance = LANCE in str(error)
    of_store = type(error).__module__.partition(".")[0] in ("botocore", "aiobotocore")
    if isinstance(error, NO_FAULTS) or not (of_lance or of_store or isinstance(error, OSError)):
        return None
    file = getattr(error, "filename", None)
    table = f"a table under {root}" if root else "a table"
    what = table if of_lance else str(file) if file else " or ".join(places) or "a file or its store"
    return f"{what} could not be read or written ({_cause(error)}): {_way_out(error)}"


def _cause(error: BaseException) -> str:
    return without_password(" ".join(NOISE.sub("", str(reason_of(error))).split())).rstrip(".,")


def _way_out(error: BaseException) -> str:
    if no_space_left(error):
        return "make room there and run the command again, which continues"
    if without_credentials(error):
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    if getattr(error, "errno", None) in REFUSED or OF_REFUSALS.search(str(error)):
        return "allow it, or name another place"
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | FileExistsError):
        return "check the path"
    return "check the address, and run again when the disk or store answers"
