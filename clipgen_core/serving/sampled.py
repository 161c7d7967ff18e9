"""The answer to a request that is sampled: at once when it is complete, or as server-sent events.

Knows jobs and ASGI; knows nothing of the model. A client that goes away frees its place.
"""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from torch import Tensor

from clipgen_core import logs
from clipgen_core.data.pixels import png_bytes
from clipgen_core.errors import ClipgenError, first_line
from clipgen_core.generation.sampling import Busy, OnStep
from clipgen_core.serving.messages import ErrorAnswer, Images, Refused, named_in
from clipgen_core.serving.monitoring import REQUESTS
from clipgen_core.serving.work import Full, Job, Stopped, Work

LATER = {"Retry-After": "5"}  # seconds
BUSY = "too many requests wait: try again later"
STOPS = "the server stops: try again later"
FAILED = "the server failed; its log says why"


@dataclass(frozen=True)
class Previews:
    """What a stream shows beside the result.

    event: The beginning of the events' names.
    count: Unfinished images at most.
    decode: The unfinished image of codes, int64 [1, t], -1 where there is none yet.
    """

    event: str
    count: int
    decode: Callable[[Tensor], list[Image.Image]]


@dataclass
class Sampled(Response):
    """A response of ASGI whose body is sampled while it is sent.

    Args:
        kind: text or edit, for the metrics.
        work: Samples it.
        call: Returns the answer; runs in a thread.
        previews: For a stream.
    """

    kind: str
    work: Work
    call: Callable[[OnStep], Images]
    previews: Previews | None = None
    background: None = field(default=None, init=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            job = self.work.start(self.call)
        except Full:
            REQUESTS.labels(self.kind, "refused").inc()
            raise too_many(BUSY) from None
        watch = asyncio.create_task(_stop_when_gone(job, receive))
        try:
            await (await self._response(job))(scope, receive, send)
        finally:
            watch.cancel()
            job.stop()

    async def _response(self, job: Job[Images]) -> Response:
        """Wait for the first step of a stream, or for the end, so that errors before it have their status."""
        codes = job.codes()
        if self.previews:
            first = await anext(codes, None)
            if first is not None:
                return StreamingResponse(self._events(job, first), media_type="text/event-stream")
        async for _ in codes:
            pass
        return JSONResponse(job.result().model_dump())

    async def _events(self, job: Job[Images], first: Tensor) -> AsyncIterator[str]:
        assert self.previews
        try:
            async for event in self._unfinished(job, self.previews, first):
                yield event
            answer = job.result()
        except Exception as error:
            problem = refusal_of(error).problem
            yield _event("error", ErrorAnswer(error=problem).model_dump())
            return
        common = answer.model_dump(exclude={"data"})
        for image in answer.data:
            yield _event(f"{self.previews.event}.completed", common | image.model_dump())

    async def _unfinished(self, job: Job[Images], previews: Previews, first: Tensor) -> AsyncIterator[str]:
        """Images at equal distances between the first step and the last one."""
        begun, shown = int((first >= 0).sum()), 0
        async for codes in job.codes():
            known = int((codes >= 0).sum())
            share = (known - begun) / max(len(codes) - begun, 1)
            if known < len(codes) and share * (previews.count + 1) >= shown + 1:
                (image,) = await asyncio.to_thread(previews.decode, codes[None])
                fields = {"output_format": "png", "size": f"{image.width}x{image.height}"}
                fields |= {"b64_json": in_base64(image)}
                yield _event(f"{previews.event}.partial_image", {"partial_image_index": shown, **fields})
                shown += 1


def in_base64(image: Image.Image) -> str:
    return base64.b64encode(png_bytes(image)).decode()


def refusal_of(error: Exception) -> Refused:
    """How an error is answered. One that is not for the client is written to the log."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, Busy):
        return too_many(str(error))
    if isinstance(error, ClipgenError):
        return Refused(400, str(error), param=named_in(str(error)))
    if isinstance(error, Stopped):
        return Refused(503, STOPS, headers=LATER, type="server_error", code="stopping")
    logs.line(f"a request failed: {type(error).__name__}: {first_line(error)}")
    return Refused(500, FAILED, type="server_error")


def too_many(message: str) -> Refused:
    return Refused(429, message, headers=LATER, type="rate_limit_error", code="rate_limit_exceeded")


def error_response(refused: Refused) -> JSONResponse:
    """The response for a refusal, in OpenAI's shape."""
    body = ErrorAnswer(error=refused.problem).model_dump()
    return JSONResponse(body, refused.status, headers=refused.headers)


async def _stop_when_gone(job: Job[Images], receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    job.stop()


def _event(name: str, fields: dict[str, Any]) -> str:
    """A server-sent event, whose type is among the fields as well."""
    body = {"type": name, "created_at": fields.pop("created", int(time.time()))} | fields
    return f"event: {name}\ndata: {json.dumps(body)}\n\n"
