import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import dagster as dg
import pytest

from clipgen_core.errors import ClipgenError
from pipelines.defs import alerts


@dg.op
def failing() -> None:
    raise ClipgenError("the disk is full: make room")


@dg.op
def refusing() -> None:
    raise dg.Failure("no images are given: set CLIPGEN_SOURCE")


@dg.job
def broken() -> None:
    failing()


@dg.job
def refused_job() -> None:
    refusing()


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A web hook that refuses the first call and keeps what comes after."""
    kept: list[dict[str, Any]] = []
    refused: list[bool] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if refused:
                kept.append(json.loads(body))
            self.send_response(200 if refused else 503)
            self.end_headers()
            refused.append(True)

        def log_message(self, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook", kept
    server.shutdown()


def tell(instance: dg.DagsterInstance, job: dg.JobDefinition = broken) -> Any:
    result = job.execute_in_process(instance=instance, raise_on_error=False)
    context = dg.build_run_status_sensor_context(
        "failures_to_webhook", result.get_run_failure_event(), instance, result.dagster_run
    ).for_run_failure()
    return alerts.failures_to_webhook(context)


def test_a_failed_run_is_told_to_the_webhook(
    hook: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, kept = hook
    monkeypatch.setenv("CLIPGEN_WEBHOOK", url)
    monkeypatch.setenv("CLIPGEN_DAGSTER_PAGE", "https://dagster.example/")
    with dg.DagsterInstance.ephemeral() as instance:
        tell(instance)
        (run,) = instance.get_runs()
        tell(instance, refused_job)
    said, other = kept
    page = f"https://dagster.example/runs/{run.run_id}"
    assert said["text"] == (
        f"clipgen: failing failed in run {run.run_id}: the disk is full: make room {page}"
    )
    assert said["job"] == "broken" and said["step"] == "failing" and said["link"] == page
    assert other["error"] == "no images are given: set CLIPGEN_SOURCE"


def test_without_a_hook_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLIPGEN_WEBHOOK", raising=False)
    with dg.DagsterInstance.ephemeral() as instance:
        assert "CLIPGEN_WEBHOOK is not set" in str(tell(instance))
