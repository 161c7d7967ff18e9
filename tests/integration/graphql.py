"""Dagster's GraphQL at the address of a webserver, as the page asks it.

Knows runs and the location `clipgen`; knows nothing of how the webserver was started.
"""

from typing import Any

import requests

LAUNCH = """mutation($job: String!, $config: RunConfigData!) {
  launchRun(executionParams: {
    selector: {repositoryLocationName: "clipgen", repositoryName: "__repository__", pipelineName: $job},
    runConfigData: $config, mode: "default"})
  { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } } } }"""
STATUS = "query($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }"


def ask(webserver: str, query: str, **variables: Any) -> Any:
    """GraphQL's answer."""
    said = requests.post(
        f"{webserver}/graphql", json={"query": query, "variables": variables}, timeout=60
    ).json()
    assert "errors" not in said, said["errors"]
    return said["data"]


def launch(webserver: str, job: str, config: dict[str, Any]) -> str:
    """The id of the run that was launched."""
    made = ask(webserver, LAUNCH, job=job, config=config)["launchRun"]
    assert made["__typename"] == "LaunchRunSuccess", made
    return str(made["run"]["runId"])


def status(webserver: str, run: str) -> str:
    return str(ask(webserver, STATUS, run=run)["runOrError"]["status"])
