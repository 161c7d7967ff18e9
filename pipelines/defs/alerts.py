"""The sensor that reports a failed run to a webhook: switch it on, and name the hook in CLIPGEN_WEBHOOK.

Knows the hook's format; knows nothing of why a run failed beyond the error's text.
"""

import json
import os
import urllib.request

import dagster as dg
from tenacity import retry, stop_after_attempt, wait_exponential_jitter

SECONDS = 10


@dg.run_failure_sensor(default_status=dg.DefaultSensorStatus.STOPPED)
def failures_to_webhook(context: dg.RunFailureSensorContext) -> dg.SkipReason | None:
    """Post {"text", "job", "run_id", "error"}, as chat hooks read it."""
    hook = os.environ.get("CLIPGEN_WEBHOOK")
    if not hook:
        return dg.SkipReason("CLIPGEN_WEBHOOK is not set")
    run, error = context.dagster_run, context.failure_event.message or ""
    text = f"clipgen: {run.job_name} failed in run {run.run_id}: {error.splitlines()[0] if error else ''}"
    post(hook, {"text": text, "job": run.job_name, "run_id": run.run_id, "error": error[:2000]})
    return None


@retry(stop=stop_after_attempt(3), wait=wait_exponential_jitter(max=5), reraise=True)
def post(url: str, body: dict[str, str]) -> None:
    """Post JSON; a call that fails is retried twice.

    Args:
        url: The webhook.
        body: The JSON to send.
    """
    header = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), header)
    urllib.request.urlopen(request, timeout=SECONDS).close()
