"""The sensor that reports a failed run to a webhook: switch it on, and name the hook in CLIPGEN_WEBHOOK.

Knows the hook's format; knows nothing of why a run failed beyond the error's text.
"""

import json
import os
import urllib.request

import dagster as dg
from tenacity import retry, stop_after_attempt, wait_exponential_jitter

from pipelines.resources import run_page

SECONDS = 10


@dg.run_failure_sensor(default_status=dg.DefaultSensorStatus.STOPPED)
def failures_to_webhook(context: dg.RunFailureSensorContext) -> dg.SkipReason | None:
    """Post {"text", "job", "step", "run_id", "error", "link"}, as chat hooks read it."""
    hook = os.environ.get("CLIPGEN_WEBHOOK")
    if not hook:
        return dg.SkipReason("CLIPGEN_WEBHOOK is not set")
    run, (step, error) = context.dagster_run, _error(context)
    link, sentence = run_page(run.run_id), error.splitlines()[0] if error else ""
    text = f"clipgen: {step or run.job_name} failed in run {run.run_id}: {sentence} {link}".strip()
    body = {"text": text, "job": run.job_name, "step": step, "run_id": run.run_id}
    post(hook, body | {"error": error[:2000], "link": link})
    return None


def _error(context: dg.RunFailureSensorContext) -> tuple[str, str]:
    """The step that failed and its sentence; of a run that failed outside of steps, what Dagster says."""
    for event in context.get_step_failure_events():
        failure = event.step_failure_data
        said = failure.user_failure_data.description if failure.user_failure_data else None
        error = (failure.error and failure.error.cause) or failure.error
        if error and not said:
            said = error.message.partition(f"{error.cls_name}: ")[2] or error.message
        return event.step_key or "", (said or "").strip()
    return "", context.failure_event.message or ""


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
