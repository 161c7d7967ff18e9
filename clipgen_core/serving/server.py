"""The process of `clipgen serve`: where it listens, its token, and how it stops.

Knows sockets, files and signals; knows nothing of routes.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from types import FrameType

import uvicorn

from clipgen_core import logs
from clipgen_core.errors import ClipgenError
from clipgen_core.serving.api import build
from clipgen_core.serving.models import Models, require_available
from clipgen_core.serving.work import Work

GRACE = 25.0  # seconds from SIGTERM until requests that are being sampled are given up; Kubernetes waits 30
SHORTEST_TOKEN = 16  # characters
OTHERS = 0o077  # rights of the group and of others


def serve(models: Sequence[str], *, host: str, port: int, token_file: Path | None, waiting: int) -> None:
    """Serve models until the process is requested to stop.

    Args:
        models: Sources for `TextToImage.from_pretrained`, the default model first.
        host: The address to listen at.
        port: The port to listen at; 0 for a free one.
        token_file: Holds the token that clients must send; none is needed if None.
        waiting: Requests that may wait; more are refused.

    Raises:
        ClipgenError: A model cannot be loaded, the token cannot be used, or the port is not free.
    """
    token = read_token(token_file) if token_file else None
    require_available(models)
    with listening(host, port) as listener:
        if not token and not is_local(listener):
            logs.line("anyone who reaches this address can use it: give a --token-file")
        offered = Models(models)
        work = Work(waiting)
        config = uvicorn.Config(
            build(offered, work, token),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=round(GRACE) + 5,
        )
        ignore_stops()
        logs.line(f"serving {', '.join(offered.served)} at {url_of(listener)}/v1")
        Server(config, work).run([listener])
    logs.line("stopped")


class Server(uvicorn.Server):
    """Uvicorn's server. When it is requested to stop, it finishes what is being sampled and refuses the rest.

    Args:
        config: Uvicorn's settings.
        work: The requests.
    """

    def __init__(self, config: uvicorn.Config, work: Work) -> None:
        super().__init__(config)
        self._work = work

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; called by a signal, in the thread of the event loop.

        Args:
            sig: The signal.
            frame: Where it came.
        """
        super().handle_exit(sig, frame)
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(self._work.close)
        loop.call_soon_threadsafe(loop.call_later, GRACE, self._work.abort)


def listening(host: str, port: int) -> socket.socket:
    """A socket that is bound to an address. It refuses connections until a server listens.

    Args:
        host: A name or an address.
        port: The port; 0 for a free one.

    Returns:
        The socket.

    Raises:
        ClipgenError: The address or the port cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ClipgenError(
            f"clipgen cannot listen at {host}:{port} ({why}): choose another --host or --port"
        ) from error
    return listener


def ignore_stops() -> None:
    """Ignore signals that request a stop, which uvicorn takes itself and repeats after it has stopped."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)


def url_of(listener: socket.socket) -> str:
    """The address of a server that listens at a socket."""
    address, port = listener.getsockname()[:2]
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def is_local(listener: socket.socket) -> bool:
    """Whether only this machine reaches a socket."""
    return ip_address(listener.getsockname()[0]).is_loopback


def read_token(file: Path) -> str:
    """The token in a file.

    Raises:
        ClipgenError: There is no such file, or what it holds is no token.
    """
    try:
        token = file.read_text().strip()
        rights = file.stat().st_mode
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ClipgenError(
            f"the token cannot be read from {file} ({why}): give a file that holds it"
        ) from None
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ClipgenError(
            f"{file} holds no token of {SHORTEST_TOKEN} or more letters and digits in one line: "
            "write one, as by `openssl rand -hex 32`"
        )
    if os.name == "posix" and rights & OTHERS:
        logs.line(f"other users of this machine may read {file}: chmod 600 {file}")
    return token
