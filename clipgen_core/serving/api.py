"""The HTTP API of `clipgen serve`, compatible with OpenAI's images API.

Knows routes, limits and the generator's calls; knows nothing of how a request waits and is sampled.
"""

import hmac
import secrets
import time
from collections.abc import Callable
from typing import Annotated, Any

import python_multipart  # noqa: F401  # without it, FastAPI raises no ImportError
from fastapi import FastAPI, Form, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import Gauge
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipgen_core import __version__, logs
from clipgen_core.data.pixels import with_parameters
from clipgen_core.errors import ClipgenError
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.output import settings_used
from clipgen_core.generation.requests import Generated, not_read
from clipgen_core.generation.sampling import OnStep
from clipgen_core.generation.worker import CALLER
from clipgen_core.serving import messages
from clipgen_core.serving.messages import EditForm, Generation, Images, OneImage, Refused
from clipgen_core.serving.models import Models, Served
from clipgen_core.serving.monitoring import PICTURES, ROUTE, observed
from clipgen_core.serving.sampled import Previews, Sampled, error_response, in_base64, refusal_of
from clipgen_core.serving.uploads import image_and_mask
from clipgen_core.serving.work import Stopped, Work

LARGEST_BODY = 32 * 2**20  # bytes
TOO_LARGE = f"the body is larger than {LARGEST_BODY // 2**20} MiB: send less"
GUARDED = "/v1/"  # what needs the token
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": messages.ErrorAnswer} for status in (400, 401, 404, 413, 429, 500, 503)
}
EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["event", "data"],
}
SAMPLED: dict[int | str, dict[str, Any]] = {
    200: {"model": Images, "content": {"text/event-stream": {"schema": EVENT}}},
    **ERRORS,
}
WAITING = Gauge("clipgen_requests_waiting", "Requests of the HTTP API that wait to be sampled.")
Call = Callable[[TextToImage, dict[str, Any]], list[Generated]]


class Api(FastAPI):
    """FastAPI's application, whose page says that fields that are not valid are answered with status 400."""

    def openapi(self) -> dict[str, Any]:
        page = super().openapi()
        for operation in (one for path in page["paths"].values() for one in path.values()):
            operation["responses"].pop("422", None)
        return page


def build(models: Models, work: Work, token: str | None = None) -> FastAPI:
    """Build the application.

    Args:
        models: The models that it offers.
        work: Samples the requests.
        token: What clients must send as bearer token; none if None.

    Returns:
        The application; `/openapi.json` describes it.
    """
    app = Api(
        title="clipgen",
        version=__version__,
        docs_url=None,  # its page loads scripts from the network
        redoc_url=None,
        middleware=[Middleware(Guard, token=token)],
    )
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(HTTPException, _not_served)
    for kind in (Refused, ClipgenError, Stopped, Exception):
        app.add_exception_handler(kind, _failed)
    _add_models(app, models)
    _add_images(app, models, work)
    app.router.routes.append(ROUTE)
    WAITING.set_function(lambda: work.waiting)
    return app


def _add_models(app: FastAPI, models: Models) -> None:
    began = int(time.time())

    def described(model: Served) -> messages.Model:
        return messages.Model(id=model.name, created=began, size=model.size)

    @app.get("/v1/models", responses=ERRORS)
    async def list_models() -> messages.ModelList:
        """List the models, the default one first."""
        return messages.ModelList(data=[described(one) for one in models.served.values()])

    @app.get("/v1/models/{name:path}", responses=ERRORS)
    async def get_model(name: str) -> messages.Model:
        """Describe a model."""
        return described(_found(models, name))

    @app.get("/healthz")
    async def healthy() -> dict[str, str]:
        """Answer as soon as the models are loaded."""
        return {"status": "ok"}


def _add_images(app: FastAPI, models: Models, work: Work) -> None:
    @app.post("/v1/images/generations", responses=SAMPLED, response_class=Response)
    async def generate(asked: Generation, request: Request) -> Sampled:
        """Generate images for a prompt."""

        def call(generator: TextToImage, given: dict[str, Any]) -> list[Generated]:
            (row,) = generator.generate_scored(asked.prompt, **given)
            return row

        return _sampled(models, work, "text", asked, call, request)

    @app.post("/v1/images/edits", responses=SAMPLED, response_class=Response)
    async def edit(asked: Annotated[EditForm, Form()], request: Request) -> Sampled:
        """Generate a part of an image anew."""
        image = next(filter(None, [asked.image, *asked.image_list]), None)
        if image is None:
            raise Refused(400, "image is missing: give it", param="image", code="missing_parameter")

        def call(generator: TextToImage, given: dict[str, Any]) -> list[Generated]:
            mask = asked.mask.file.read() if asked.mask else None
            return generator.edit(*image_and_mask(image.file.read(), mask), asked.prompt, **given)

        return _sampled(models, work, "edit", asked, call, request)


def _sampled(
    models: Models, work: Work, kind: str, asked: Generation | EditForm, call: Call, request: Request
) -> Sampled:
    """The response to a request whose fields are valid."""
    model = _found(models, asked.model)
    if asked.size not in (None, "auto", model.size):
        raise Refused(
            400, f"size is {asked.size}: {model.name} generates {model.size}; say that, or auto", param="size"
        )
    seed = secrets.randbelow(2**31) if asked.seed is None else asked.seed
    parameters = {"n": asked.n or 1, "seed": seed, **asked.sampling}
    address = request.client.host if request.client else ""

    def sample(on_step: OnStep) -> Images:
        CALLER.set(asked.user or address)
        with observed(kind):
            generator = _loaded(models, model)
            row = call(generator, {**parameters, "on_step": on_step})
            PICTURES.labels(kind).inc(len(row))
            used = settings_used(generator, parameters, of_text=asked.prompt is not None)
            edited = {"edited": True} if kind == "edit" else {}
            said = {"prompt": asked.prompt, **edited, **parameters, **used, "model": models.origin(model)}
            return Images(
                created=int(time.time()),
                size=_found(models, model.name).size,  # of the version that was loaded
                seed=seed,
                data=[_one(image, said) for image in row],
                notes=tuple(_notes(generator, asked.prompt)),
            )

    previews = Previews(
        "image_generation" if kind == "text" else "image_edit",
        asked.partial_images or 0,
        lambda codes: _loaded(models, model).decode_partly(codes),
    )
    return Sampled(kind, work, sample, previews if asked.stream else None)


def _one(generated: Generated, said: dict[str, Any]) -> OneImage:
    image = with_parameters(generated.image, said)
    return OneImage(b64_json=in_base64(image), clip_score=round(generated.clip_score, 4))


def _notes(generator: TextToImage, prompt: str | None) -> list[str]:
    return not_read([prompt], generator.dropped_tokens(prompt)) if prompt else []


def _found(models: Models, name: str | None) -> Served:
    try:
        return models.find(name)
    except ClipgenError as error:
        raise Refused(404, str(error), param="model", code="model_not_found") from None


def _loaded(models: Models, model: Served) -> TextToImage:
    try:
        return models.load(model)
    except ClipgenError as error:  # which may name a folder of the server
        logs.line(f"{model.name} cannot be loaded: {error}")
        raise Refused(
            500, f"{model.name} cannot be loaded; the server's log says why", type="server_error"
        ) from None


async def _failed(_: Request, error: Exception) -> Response:
    return error_response(refusal_of(error))


async def _not_valid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    fields = (EditForm if request.url.path.endswith("edits") else Generation).model_fields
    return error_response(messages.said_of(error.errors()[0], fields))


async def _not_served(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = {
        400: f"the body cannot be read ({error.detail}): send what /openapi.json says",
        404: f"there is nothing at {request.url.path}: see /openapi.json",
        405: f"{request.url.path} does not answer {request.method}: see /openapi.json",
        413: TOO_LARGE,
    }
    sentence = said.get(error.status_code, str(error.detail))
    return error_response(Refused(error.status_code, sentence, headers=error.headers))


class Guard:
    """Refuse requests without the token before their body is read, and bodies that are too large.

    Args:
        app: What answers the others.
        token: The token; none is needed if None.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app, self._token = app, token.encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if refused := self._refusal(scope["path"], Headers(scope=scope)):
            return await error_response(refused)(scope, receive, send)
        size = 0

        async def receive_some() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > LARGEST_BODY:
                raise HTTPException(413)
            return message

        await self._app(scope, receive_some, send)

    def _refusal(self, path: str, headers: Headers) -> Refused | None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        right = scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), self._token or b"")
        if self._token and path.startswith(GUARDED) and not right:
            return Refused(
                401,
                "the token is missing or wrong: send it as a bearer token",
                headers={"WWW-Authenticate": "Bearer"},
                code="invalid_api_key",
            )
        length = headers.get("content-length", "")
        return Refused(413, TOO_LARGE) if length.isdecimal() and int(length) > LARGEST_BODY else None
