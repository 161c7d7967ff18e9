"""The image of infra/docker, and the platform of infra/compose in containers: `pytest -m containers`.

Needs podman, podman-compose and, on this machine, the base image that the Dockerfile names. PostgreSQL and
SeaweedFS are replaced by stand-ins where their images are missing.
"""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from clipgen_core.tracking import mlflow_client
from tests.conftest import wait_for
from tests.integration.containers import REPOSITORY, Project, build, podman
from tests.integration.graphql import ask, launch, status

pytestmark = [pytest.mark.containers, pytest.mark.timeout(7200)]
CLOSED = ("--read-only", "--tmpfs=/tmp", "--tmpfs=/opt/dagster:mode=1777", "--cap-drop=all")
CLOSED += ("--security-opt=no-new-privileges", "--network=none")  # network: a loopback of its own
WEBSERVER = "http://127.0.0.1:3000"


@pytest.fixture(scope="module")
def image() -> str:
    return build()


@contextmanager
def container(image: str, *command: str, **settings: str) -> Iterator[str]:
    """The name of a running container."""
    name = f"clipgen-test-{uuid.uuid4().hex[:8]}"
    environment = [f"--env={key}={value}" for key, value in settings.items()]
    podman("run", "--detach", f"--name={name}", *CLOSED, *environment, image, *command)
    try:
        yield name
    finally:
        podman("rm", "--force", "--time", "0", "--volumes", name)


def succeeds(name: str, *command: str) -> bool:
    return podman("exec", name, *command, check=False).returncode == 0


def wait_until(name: str, *command: str) -> None:
    def running() -> bool:
        inside = podman("inspect", "-f", "{{.State.Running}}", name).stdout.strip() == "true"
        return inside or pytest.fail(podman("logs", name).stderr[-5000:])

    wait_for(lambda: succeeds(name, *command), " ".join(command), alive=running, seconds=900, pause=2)


def get(url: str, **headers: str) -> tuple[str, ...]:
    ask = f"urlopen(Request({url!r}, headers={headers!r}))"
    return ("python", "-c", f"from urllib.request import Request, urlopen; {ask}")


def arguments(file: str) -> list[str]:
    """What a Deployment of infra/kubernetes gives to its container's entrypoint."""
    manifests = yaml.safe_load_all((REPOSITORY / "infra" / "kubernetes" / file).read_text())
    (deployment,) = (one for one in manifests if one["kind"] == "Deployment")
    found: list[str] = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    return found


def test_the_image_runs_as_nobody_special_with_what_was_asked_for(image: str) -> None:
    with container(image, "sleep", "infinity") as name:
        assert podman("exec", name, "id", "-u").stdout.strip() == "10001"
        assert not succeeds(name, "touch", "/home/clipgen/x")
        assert succeeds(name, "clipgen", "--help") and succeeds(name, "ray", "--version")
        modules = "torch, clipgen_core, gradio, fastapi, transformers, ray, dagster_ray, dagster_k8s, s3fs"
        assert succeeds(name, "python", "-c", f"import {modules}")


def test_the_commands_of_the_chart_run_in_the_image(image: str) -> None:
    """As the chart starts them: code location, webserver and daemon; here in one container, with SQLite."""
    values = yaml.safe_load((REPOSITORY / "infra" / "kubernetes" / "dagster-values.yaml").read_text())
    (code,) = values["dagster-user-deployments"]["deployments"]
    port = str(code["port"])
    command = ["dagster", "api", "grpc", "-h", "0.0.0.0", "-p", port, *code["dagsterApiGrpcArgs"]]
    with container(image, *command, DAGSTER_PROFILE="local") as name:
        wait_until(name, "dagster", "api", "grpc-health-check", "-p", port)
        server = f"load_from: [{{grpc_server: {{host: localhost, port: {port}, location_name: clipgen}}}}]"
        podman("exec", name, "sh", "-c", f"echo '{server}' > /tmp/workspace.yaml")
        workspace = ("-w", "/tmp/workspace.yaml")
        podman("exec", "--detach", name, "dagster-webserver", "-h", "0.0.0.0", "-p", "3000", *workspace)
        podman("exec", "--detach", name, "dagster-daemon", "run", *workspace)
        wait_until(name, *get("http://localhost:3000/server_info"))
        wait_until(name, "dagster-daemon", "liveness-check")
        listed = podman("exec", name, "dagster", "job", "list", *workspace, "-l", "clipgen").stdout
        assert "clip_gen" in listed and "clip_training" in listed


def test_mlflow_of_kubernetes_runs_in_the_image(image: str) -> None:
    settings = {"MLFLOW_BACKEND_STORE_URI": "sqlite:////tmp/mlflow.db"}
    with container(image, *arguments("mlflow.yaml"), **settings) as name:
        wait_until(name, *get("http://localhost:5000/health", Host="mlflow:5000"))
        assert not succeeds(name, *get("http://localhost:5000/api", Host="elsewhere"))


@pytest.fixture(scope="module")
def platform(image: str, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Every service of compose.yaml, healthy, with pictures and captions in the bucket."""
    if not shutil.which("podman-compose"):
        pytest.skip("needs podman-compose: pip install podman-compose")
    settings = {"CLIPGEN_RECIPE": "quick", "CLIPGEN_PROMPTS": "s3://clipgen/prompts.csv"}
    project = Project(tmp_path_factory.mktemp("compose"), "clipgen-test", settings)
    try:
        project.up()
        podman("cp", f"{pictures}/.", f"{project.container('code')}:/home/clipgen/given")
        put = "s3fs.S3FileSystem().put('given/', 'clipgen/', recursive=True)"
        project.run("code", "python", "-c", f"import s3fs; {put}")
        yield project
    finally:
        project.down()


def clip_training(steps: int | None = None) -> str:
    """The id of a launched run of the job clip_training."""
    config: dict[str, Any] = {"captions": "s3://clipgen/captions.csv"}
    config |= {"train": {"steps": steps}} if steps else {}
    return launch(WEBSERVER, "clip_training", {"ops": {"clip_checkpoint": {"config": config}}})


def wait_for_status(run: str, *wanted: str, seconds: float = 1800) -> str:
    ends = {"SUCCESS", "FAILURE", "CANCELED"}
    now: str = wait_for(
        lambda: (said := status(WEBSERVER, run)) in {*wanted, *ends} and said,
        f"run {run}: {wanted}",
        seconds=seconds,
        pause=2,
    )
    return now


SLOTS = "{ instance { concurrencyLimits { concurrencyKey claimedSlots { runId } } } }"
RETRIES = """query($run: String!) { runsOrError(filter: {tags: [{key: "dagster/parent_run_id", value: $run}]})
  { ... on Runs { results { runId } } } }"""
TERMINATE = "mutation($run: String!) { terminateRun(runId: $run) { __typename } }"


def holders() -> set[str]:
    """The runs that hold a slot of the pool `gpu`."""
    pools = ask(WEBSERVER, SLOTS)["instance"]["concurrencyLimits"]
    return {slot["runId"] for one in pools for slot in one["claimedSlots"]}


def test_the_quick_recipe_runs_through_compose(platform: Project) -> None:
    assert wait_for_status(clip_training()) == "SUCCESS", platform.logs("code")
    assert wait_for_status(launch(WEBSERVER, "clip_gen", {})) == "SUCCESS", platform.logs("code")
    assert not holders()
    client = mlflow_client("http://127.0.0.1:5000")
    experiment = client.get_experiment_by_name("clip-gen")
    assert experiment and client.search_model_versions("name='clip-gen'")
    assert {one.info.status for one in client.search_runs([experiment.experiment_id])} == {"FINISHED"}
    listed = "import s3fs; print('\\n'.join(s3fs.S3FileSystem().find('clipgen')))"
    files = platform.run("code", "python", "-c", listed)
    for part in (
        "root/images.lance",
        "root/tokens",
        "root/checkpoints/transformer",
        "root/reports",
        "mlflow",
    ):
        assert f"clipgen/{part}/" in files, part


def test_a_run_of_a_lost_code_container_ends_failed_and_is_started_again(platform: Project) -> None:
    run = clip_training(steps=100_000)
    wait_for(lambda: run in holders(), "the step", seconds=600, pause=2)
    podman("kill", platform.container("code"))
    assert status(WEBSERVER, run) == "STARTED" and holders() == {run}
    podman("start", platform.container("code"))
    assert wait_for_status(run, seconds=300) == "FAILURE"

    def again() -> list[Any]:
        found: list[Any] = ask(WEBSERVER, RETRIES, run=run)["runsOrError"]["results"]
        return found

    (retry,) = wait_for(again, "the daemon to start it again", seconds=600, pause=2)
    wait_for(lambda: holders() == {retry["runId"]}, "its step, in the slot", seconds=600, pause=2)
    ask(WEBSERVER, TERMINATE, run=retry["runId"])
    assert wait_for_status(retry["runId"], seconds=600) == "CANCELED"
    wait_for(lambda: not holders(), "the slot", seconds=600)  # the daemon frees what the process did not
