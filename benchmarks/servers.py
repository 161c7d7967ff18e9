"""The page and the HTTP API as processes of their own, for the benchmarks that ask them."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(
    command: str, model: str, scratch: Path, *options: str, health: str = "", **environment: str
) -> Iterator[str]:
    """A server as a process of its own, at a free port.

    Args:
        command: `ui` or `serve`.
        model: As for `clipgen generate`.
        scratch: A folder for its log and its files.
        options: Further ones of the command.
        health: The path that answers when it is ready.
        environment: Further variables of it.

    Yields:
        Its address.
    """
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    line = [sys.executable, "-m", "clipgen_core.cli", command, "-m", model, "--port", str(port), *options]
    variables = os.environ | {"GRADIO_TEMP_DIR": str(scratch / "gradio")} | environment
    with (scratch / "log").open("wb") as log:
        server = subprocess.Popen(line, stdout=log, stderr=log, env=variables)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{url}{health}", server, scratch / "log")
        yield url
    finally:
        server.kill()
        server.wait()


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(1200):
        if server.poll() is not None:
            raise SystemExit(log.read_text())
        try:
            return urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"nothing answers at {url}")


def mixed_up(answers: list[bytes], expected: list[bytes]) -> int:
    """How many users got the image of another.

    Args:
        answers: The pixels that each user got.
        expected: Those that each asked for.

    Returns:
        Their number.
    """
    return sum(got in expected[:number] + expected[number + 1 :] for number, got in enumerate(answers))
