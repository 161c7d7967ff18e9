"""A proxy that offers a server at a path of its own, as nginx does with `proxy_pass`."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tests.conftest import free_port

METHODS = ["GET", "POST", "HEAD"]


@contextmanager
def proxied(upstream: str, path: str) -> Iterator[str]:
    """The URL at which a proxy offers a server below `path`; nothing else is there."""

    async def forward(request: Request) -> Response:
        url = httpx.URL(f"{upstream}/{request.path_params['rest']}", query=request.url.query.encode())
        asked = client.build_request(
            request.method, url, headers=request.headers.raw, content=await request.body()
        )
        answer = await client.send(asked, stream=True)
        headers = {name: value for name, value in answer.headers.items() if name != "transfer-encoding"}
        return StreamingResponse(answer.aiter_raw(), answer.status_code, headers)

    client = httpx.AsyncClient(trust_env=False, timeout=None)
    port = free_port()
    app = Starlette(routes=[Route(f"{path}/{{rest:path}}", forward, methods=METHODS)])
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{port}{path}/"
    finally:
        server.should_exit = server.force_exit = True
        thread.join()
