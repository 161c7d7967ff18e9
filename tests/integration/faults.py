"""A proxy between a client and an HTTP store that misbehaves as networks and busy stores do."""

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SLOW_DOWN = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"""


class FaultyProxy:
    """Forwards to `upstream` (host, port); a share of requests meets a fault before or after it arrives.

    faults: reset (closed without an answer), slow_down (503), slow (half a second late), truncated (a body
    cut in the middle). The same request is spared after two faults, as a store recovers at some time.
    """

    def __init__(self, upstream: tuple[str, int], share: float = 0.25, seed: int = 0) -> None:
        self.upstream, self.share, self.random = upstream, share, random.Random(seed)
        self.met: Counter[str] = Counter()
        self.by_request: Counter[str] = Counter()
        self.lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                proxy.answer(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_one

            def log_message(self, *_: Any) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None: ...

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()

    def fault(self, request: str) -> str | None:
        with self.lock:
            kinds = ["reset", "slow_down", "slow"] + (["truncated"] * 2 if request.startswith("GET") else [])
            if self.random.random() >= self.share or self.by_request[request] >= 2:
                return None
            kind = self.random.choice(kinds)
            self.by_request[request] += 1
            self.met[kind] += 1
            return kind

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = self._body(handler)
        kind = self.fault(f"{handler.command} {handler.path} {handler.headers.get('Range', '')}")
        if kind == "reset":
            return _reset(handler)
        if kind == "slow_down":
            return _send(handler, 503, {"Content-Type": "application/xml"}, SLOW_DOWN)
        if kind == "slow":
            time.sleep(0.5)
        status, headers, data = self._forward(handler, body)
        _send(handler, status, headers, data, cut=kind == "truncated" and len(data) > 1)

    def _body(self, handler: BaseHTTPRequestHandler) -> bytes:
        if "chunked" in handler.headers.get("Transfer-Encoding", ""):
            data = b""
            while size := int(handler.rfile.readline().split(b";")[0], 16):
                data += handler.rfile.read(size)
                handler.rfile.readline()
            handler.rfile.readline()
            return data
        return handler.rfile.read(int(handler.headers.get("Content-Length") or 0))

    def _forward(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(*self.upstream, timeout=30)
        headers = {k: v for k, v in handler.headers.items() if k.lower() != "transfer-encoding"}
        headers["Content-Length"] = str(len(body))
        connection.request(handler.command, handler.path, body, headers)
        response = connection.getresponse()
        data = response.read()
        kept = {
            k: v for k, v in response.getheaders() if k.lower() not in ("transfer-encoding", "connection")
        }
        connection.close()
        return response.status, kept, data


def _send(
    handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], data: bytes, cut: bool = False
) -> None:
    handler.send_response_only(status)
    for name, value in headers.items():
        if name.lower() != "content-length" or handler.command == "HEAD":
            handler.send_header(name, value)
    if handler.command != "HEAD":
        handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(data[: len(data) // 2] if cut else data)
    if cut:
        handler.wfile.flush()
        _reset(handler)


def _reset(handler: BaseHTTPRequestHandler) -> None:
    """Close at once, with a TCP reset."""
    handler.close_connection = True
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
