"""Metrics of the page and the HTTP API for Prometheus: requests, how they ended and how long they took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from clipgen_core.errors import ClipgenError
from clipgen_core.serving.work import Stopped

KIND = ["kind"]  # text, picture or edit
REQUESTS = Counter(
    "clipgen_requests", "Requests, by how they ended: made, stopped, refused or failed.", [*KIND, "ended"]
)
SECONDS = Histogram(
    "clipgen_request_seconds",
    "Seconds from the start of a request, after its wait in the queue, to its pictures.",
    KIND,
    buckets=(0.5, 1, 2, 5, 10, 20, 60, 120),
)
PICTURES = Counter("clipgen_pictures", "Pictures shown.", KIND)
WORKING = Gauge("clipgen_requests_working", "Requests that are being sampled.")


@contextmanager
def observed(kind: str) -> Iterator[None]:
    """Within the `with`, a request of this kind (text, picture or edit) is processed; count and time it."""
    began, ended = time.monotonic(), "failed"
    WORKING.inc()
    try:
        yield
        ended = "made"
        SECONDS.labels(kind).observe(time.monotonic() - began)
    except (GeneratorExit, Stopped):
        ended = "stopped"
        raise
    except ClipgenError:
        ended = "refused"
        raise
    finally:
        WORKING.dec()
        REQUESTS.labels(kind, ended).inc()


def _metrics(_: Request) -> Response:
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


ROUTE = Route("/metrics", _metrics)
