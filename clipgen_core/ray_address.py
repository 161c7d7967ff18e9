"""The Ray cluster that RAY_ADDRESS names.

Knows how to tell that it is away, which Ray itself does after minutes; knows nothing of what runs there.
"""

import os
import socket
from typing import Any

from clipgen_core.errors import ClipgenError, first_line

SECONDS = 5.0


def address() -> str:
    """Where the cluster is; empty where Ray starts on this machine, or finds a cluster by itself."""
    given = os.environ.get("RAY_ADDRESS", "")
    return "" if given in ("auto", "local") else given


def require_answer(address: str) -> None:
    """Check that a cluster answers.

    Raises:
        ClipgenError: It does not within seconds.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=SECONDS).close()
    except (OSError, ValueError) as error:
        raise ClipgenError(
            f"Ray at {address} does not answer ({first_line(error)}): start the cluster, or set RAY_ADDRESS"
        ) from error


def join(**options: Any) -> None:
    """Connect this process to the cluster, or start Ray on this machine; nothing if it is connected already.

    Args:
        options: Of `ray.init`.

    Raises:
        ClipgenError: The cluster does not answer.
    """
    import ray

    if not ray.is_initialized():
        if there := address():
            require_answer(there)
        ray.init(**options)
