"""Whether a store can be reached. Knows addresses and errors of networks; knows nothing of files."""

import functools
import os
import socket
import time
import urllib.request
from urllib.parse import urlsplit

from clipgen_core.errors import ClipgenError, reason_of

PATIENCE = 10.0  # seconds that a store may take to answer, or to come back
S3 = ("s3://", "s3a://")
UNREACHABLE = ("EndpointConnectionError", "ConnectTimeoutError", "ClientConnectorError", "gaierror")
_AWAY = set[str]()  # stores that did not answer before, for which nobody waits as long again
SAID = ("Connection refused", "dns error", "tcp connect error")  # by Lance and obstore


def s3_endpoint() -> str | None:
    """The address of an S3-compatible store, where the environment names one."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def require_answer(url: str) -> None:
    """Refuse an address in a store that does not answer, before clients of it try again and again.

    Raises:
        ClipgenError: The S3-compatible store that the environment names accepts no connection.
    """
    endpoint = s3_endpoint()
    if endpoint and url.startswith(S3):
        _require_connection(endpoint)


@functools.cache
def _require_connection(endpoint: str) -> None:
    parts = urlsplit(endpoint)
    host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    proxied = parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host or "")
    if not host or proxied:
        return
    patience = 1.0 if endpoint in _AWAY else PATIENCE
    until = time.monotonic() + patience
    while True:
        try:
            return socket.create_connection((host, port), timeout=patience).close()
        except OSError as error:
            if time.monotonic() >= until:
                _AWAY.add(endpoint)
                raise ClipgenError(
                    f"the store at {parts.scheme}://{host}:{port} does not answer ({reason_of(error)}): "
                    "check AWS_ENDPOINT_URL, and run again when the store answers"
                ) from error
        time.sleep(PATIENCE / 10)


def is_unreachable(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is that no connection was made; botocore may not be
    installed."""
    while error is not None:
        named = isinstance(error, ConnectionRefusedError) or type(error).__name__ in UNREACHABLE
        if named or any(one in str(error) for one in SAID):
            return True
        error = error.__cause__ or error.__context__
    return False


def without_credentials(error: BaseException) -> bool:
    """Whether a store was not asked at all, for there are no credentials; botocore may not be installed."""
    return type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError")
