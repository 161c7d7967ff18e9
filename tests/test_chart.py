"""The values for Dagster's Helm chart: against our own profile, and, where a chart is at hand, rendered.

CLIPGEN_DAGSTER_CHART names the chart's archive, `helm pull dagster/dagster` gives it; its templates are
rendered by helm-python-sdk, without a cluster and without a network.
"""

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.pods import snake, violations

INFRA = Path(__file__).parents[1] / "infra"
OURS = ("apps", "rbac.authorization.k8s.io", "v1")  # groups of Kubernetes' own schemas


@pytest.fixture
def values() -> Any:
    return yaml.safe_load((INFRA / "kubernetes" / "dagster-values.yaml").read_text())


@pytest.fixture
def profile() -> Any:
    return yaml.safe_load((INFRA / "dagster" / "kubernetes.yaml").read_text())


def test_the_helm_values_say_what_the_instance_profile_says(values: Any, profile: Any) -> None:
    daemon, database = values["dagsterDaemon"], profile["storage"]["postgres"]["postgres_db"]
    assert values["concurrency"]["enabled"]  # else the chart leaves all of it out
    pools, ours = values["concurrency"]["pools"], profile["concurrency"]["pools"]
    assert (pools["defaultLimit"], pools["granularity"]) == (ours["default_limit"], ours["granularity"])
    assert (
        values["concurrency"]["runs"]["maxConcurrentRuns"]
        == profile["concurrency"]["runs"]["max_concurrent_runs"]
    )
    assert daemon["runRetries"]["maxRetries"] == profile["run_retries"]["max_retries"]
    assert snake(daemon["runMonitoring"]) == profile["run_monitoring"]
    assert values["postgresql"]["postgresqlScheme"] == database["scheme"]
    assert values["runLauncher"]["type"] == profile["run_launcher"]["class"] == "K8sRunLauncher"
    assert not values["telemetry"]["enabled"] and not values["generatePostgresqlPasswordSecret"]
    (code,) = values["dagster-user-deployments"]["deployments"]
    assert code["dagsterApiGrpcArgs"] == ["-m", "pipelines.definitions", "--location-name", code["name"]]
    assert code["envSecrets"] == [{"name": "clipgen"}] and "env" not in code
    for part in (code, values["runLauncher"]["config"]["k8sRunLauncher"]):
        assert part["labels"] == {"clipgen": "true"}


def test_the_values_of_the_chart_close_the_pods_that_it_makes(values: Any, profile: Any) -> None:
    """The chart gives these contexts to its containers and init containers."""
    (code,) = values["dagster-user-deployments"]["deployments"]
    for part in (values["dagsterWebserver"], values["dagsterDaemon"], code):
        container = {"name": "one", "securityContext": part["securityContext"]}
        assert not violations({"containers": [container], "securityContext": part["podSecurityContext"]})
    ours = profile["run_launcher"]["config"]["run_k8s_config"]
    theirs = values["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]
    assert snake(theirs) == snake(ours)


@pytest.fixture
def rendered(values: Any, tmp_path: Path) -> list[Any]:
    """What the chart makes of our values."""
    helm = pytest.importorskip("helm_python", reason="needs helm-python-sdk")
    chart = os.environ.get("CLIPGEN_DAGSTER_CHART")
    if not chart:
        pytest.skip("CLIPGEN_DAGSTER_CHART names no archive of Dagster's chart")
    with tarfile.open(chart) as archive:
        archive.extractall(tmp_path, filter="data")
    for schema in tmp_path.rglob("values.schema.json"):
        schema.write_text(json.dumps(without_references(json.loads(schema.read_text()))))
    with helm.Chart.load(str(tmp_path / "dagster")) as loaded:
        made = loaded.render(values, name="dagster", namespace="clipgen")
    texts = (text for name, text in made.items() if name.endswith(".yaml"))
    return [one for text in texts for one in yaml.safe_load_all(text) if one]


def without_references(schema: Any) -> Any:
    """A JSON schema that takes anything where it refers to a file on a network: Kubernetes' own schemas."""
    if isinstance(schema, list):
        return [without_references(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if str(schema.get("$ref", "")).startswith("http"):
        return {}
    return {key: without_references(one) for key, one in schema.items()}


def test_what_the_chart_makes_fits_kubernetes_and_is_admitted(rendered: list[Any]) -> None:
    made = [one for one in rendered if one["apiVersion"].split("/")[0] in OURS]
    for one in made:
        kubernetes_validate.validate(one, "1.37", strict=True)
    pods = {
        one["metadata"]["name"]: one["spec"]["template"]["spec"]
        for one in made
        if one["kind"] == "Deployment"
    }
    assert len(pods) == 3
    for name, pod in pods.items():
        assert not violations(pod), name
        for container in pod["containers"]:
            assert {"secretRef": {"name": "clipgen"}} in container["envFrom"], name
    (code,) = (pod for name, pod in pods.items() if name.endswith("clipgen"))
    assert code["containers"][0]["args"][-4:] == ["-m", "pipelines.definitions", "--location-name", "clipgen"]


def test_the_charts_instance_is_the_one_of_our_profile(rendered: list[Any], profile: Any) -> None:
    (instance,) = (one for one in rendered if one["metadata"]["name"] == "dagster-instance")
    made = yaml.safe_load(instance["data"]["dagster.yaml"])
    for part in ("concurrency", "run_monitoring", "run_retries", "telemetry"):
        assert profile[part].items() <= made[part].items(), part
    for part in ("run_launcher", "compute_logs"):
        assert made[part]["class"] == profile[part]["class"]
        config = snake(made[part]["config"])
        assert snake(profile[part]["config"]).items() <= config.items(), part
