"""What runs the pipeline elsewhere, as far as it can be checked without a Docker engine or a cluster."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.conftest import commands
from tests.pods import violations

REPOSITORY = Path(__file__).parents[1]
INFRA = REPOSITORY / "infra"
BIN = Path(sys.executable).parent


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_the_compose_file_is_valid_and_keeps_its_secrets_in_files() -> None:
    file = INFRA / "compose" / "compose.yaml"
    done = run(str(BIN / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(file))
    assert done.returncode == 0, done.stdout
    compose = yaml.safe_load(file.read_text())
    for name, service in compose["services"].items():
        assert re.search(r":\d", service["image"]), f"{name} is not pinned"
        assert "healthcheck" in service or name == "bucket"
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")
        for key, value in service["environment"].items() if "environment" in service else ():
            secret = re.search(r"PASSWORD|SECRET|ACCESS_KEY", key)
            assert not secret or (key.endswith("_FILE") and value.startswith("/run/secrets/")), key
        assert set(service.get("secrets", ())) <= compose["secrets"].keys()
    assert "clipgen" in compose["services"]["code"]["image"]


def test_the_dockerfile_has_no_finding_and_runs_as_nobody_special() -> None:
    done = run(str(BIN / "hadolint"), "--failure-threshold", "info", str(INFRA / "docker" / "Dockerfile"))
    assert done.returncode == 0, done.stdout
    text = (INFRA / "docker" / "Dockerfile").read_text()
    assert re.search(r"^USER 10001$", text, flags=re.M)
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, flags=re.M):
        for path in source.split():
            assert (REPOSITORY / path).exists(), path


@pytest.mark.parametrize("script", ["compose/secrets.sh", "compose/mlflow.sh", "docker/entrypoint.sh"])
def test_scripts_are_bash_and_executable(script: str) -> None:
    assert os.access(INFRA / script, os.X_OK)
    assert run("bash", "-n", str(INFRA / script)).returncode == 0


def test_the_entrypoint_reads_secrets_from_files_and_takes_a_profile(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cr3t")
    entrypoint = str(INFRA / "docker" / "entrypoint.sh")
    settings = {
        "AWS_SECRET_ACCESS_KEY_FILE": str(tmp_path / "secret"),
        "DAGSTER_PROFILE": "compose",
        "CLIPGEN_PROFILES": str(INFRA / "dagster"),
        "DAGSTER_HOME": str(tmp_path),
    }
    done = run(entrypoint, "printenv", "AWS_SECRET_ACCESS_KEY", **settings)
    assert done.stdout == "s3cr3t\n", done.stderr
    assert (tmp_path / "dagster.yaml").read_text() == (INFRA / "dagster" / "compose.yaml").read_text()
    settings["AWS_SECRET_ACCESS_KEY_FILE"] = str(tmp_path / "none")
    done = run(entrypoint, "true", **settings)
    assert done.returncode == 2 and "mount the secret" in done.stderr


def test_a_service_of_compose_writes_its_profile_where_it_may() -> None:
    """The root of each container is read-only, and a tmpfs belongs to root unless its mode says otherwise."""
    services = yaml.safe_load((INFRA / "compose" / "compose.yaml").read_text())["services"]
    ours = {name: one for name, one in services.items() if one["image"].startswith("clipgen")}
    assert all(one["read_only"] for one in ours.values())
    with_instance = {name for name, one in ours.items() if one["environment"]["DAGSTER_PROFILE"]}
    writable = {name for name, one in ours.items() if "/opt/dagster:mode=1777" in one["tmpfs"]}
    assert with_instance == writable == {"code", "webserver", "daemon"}


def test_the_health_check_of_the_daemon_reads_the_password_that_exec_does_not_give(tmp_path: Path) -> None:
    services = yaml.safe_load((INFRA / "compose" / "compose.yaml").read_text())["services"]
    _, *command = services["daemon"]["healthcheck"]["test"]
    (tmp_path / "secret").write_text("s3cr3t")
    (tmp_path / "entrypoint").symlink_to(INFRA / "docker" / "entrypoint.sh")
    (tmp_path / "dagster-daemon").write_text('#!/bin/bash\necho "$1 $DAGSTER_PG_PASSWORD"\n')
    (tmp_path / "dagster-daemon").chmod(0o755)
    done = run(
        *command,
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        DAGSTER_PROFILE="compose",
        DAGSTER_HOME=str(tmp_path / "none"),
        DAGSTER_PG_PASSWORD_FILE=str(tmp_path / "secret"),
    )
    assert done.stdout == "liveness-check s3cr3t\n", done.stderr


def test_secrets_are_made_once(tmp_path: Path) -> None:
    script = tmp_path / "secrets.sh"
    script.write_bytes((INFRA / "compose" / "secrets.sh").read_bytes())
    script.chmod(0o755)
    assert run(str(script)).returncode == 0
    made = {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()}
    declared = yaml.safe_load((INFRA / "compose" / "compose.yaml").read_text())["secrets"]
    assert {Path(one["file"]).name for one in declared.values()} == made.keys()
    assert len(set(made.values())) == 5 and all(len(value) >= 48 for value in made.values())
    (credentials,) = json.loads(made["s3_config"])["identities"]
    assert credentials["credentials"][0]["secretKey"] == made["s3_secret"]
    assert run(str(script)).returncode == 0
    assert {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()} == made


@pytest.mark.parametrize("profile", ["local", "compose", "kubernetes"])
def test_dagster_accepts_each_profile(profile: str, tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_bytes((INFRA / "dagster" / f"{profile}.yaml").read_bytes())
    code = (
        "from dagster._core.instance.config import dagster_instance_config\n"
        "from dagster._core.instance.ref import InstanceRef\n"
        f"config, _ = dagster_instance_config({str(tmp_path)!r})\n"
        f"ref = InstanceRef.from_dir({str(tmp_path)!r})\n"
        "print(config['telemetry'], ref.run_coordinator_data and ref.run_coordinator_data.class_name)\n"
        "print(ref.run_launcher_data and ref.run_launcher_data.class_name)\n"
    )
    done = run(sys.executable, "-c", code, DAGSTER_PG_HOST="x", DAGSTER_PG_PORT="1", DAGSTER_PG_PASSWORD="x")
    assert done.returncode == 0, done.stderr
    assert "{'enabled': False}" in done.stdout
    assert ("K8sRunLauncher" in done.stdout) == (profile == "kubernetes")


def manifests() -> list[tuple[str, dict[str, Any]]]:
    kustomization = yaml.safe_load((INFRA / "kubernetes" / "kustomization.yaml").read_text())
    files = [INFRA / "kubernetes" / name for name in kustomization["resources"]]
    return [(file.name, one) for file in files for one in yaml.safe_load_all(file.read_text())]


@pytest.mark.parametrize(("file", "manifest"), manifests(), ids=lambda one: str(one)[:40])
def test_every_manifest_fits_its_schema(file: str, manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, "1.37", strict=True)


def test_pods_are_closed_and_no_secret_is_in_a_file() -> None:
    pods = [one["spec"]["template"]["spec"] for _, one in manifests() if one["kind"] == "Deployment"]
    assert len(pods) == 2
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
        for container in pod["containers"]:
            closed = container["securityContext"]
            assert closed["readOnlyRootFilesystem"] and not closed["allowPrivilegeEscalation"]
            assert closed["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"] and container["readinessProbe"]
    assert not [one for _, one in manifests() if one["kind"] == "Secret"]
    for file in (INFRA / "kubernetes").rglob("*.yaml"):
        assert not re.search(r"(?i)(password|secret_access_key|auth_token): *\S", file.read_text()), file


def test_the_check_of_the_restricted_profile_finds_what_is_forbidden() -> None:
    bare = {"containers": [{"name": "x"}], "hostPID": True, "volumes": [{"name": "v", "hostPath": {}}]}
    missing = ("allowPrivilegeEscalation", "capabilities.drop", "runAsNonRoot", "seccompProfile")
    assert violations(bare) == ["hostPID", "v", *(f"x: {one}" for one in missing)]


def test_our_own_pods_are_admitted_by_a_restricted_namespace() -> None:
    (namespace,) = (one for _, one in manifests() if one["kind"] == "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    classes = {one["metadata"]["name"] for _, one in manifests() if one["kind"] == "PriorityClass"}
    for _, one in manifests():
        if one["kind"] == "Deployment":
            pod = one["spec"]["template"]["spec"]
            assert not violations(pod) and pod["priorityClassName"] in classes


def run_launcher(tmp_path: Path) -> Any:
    """The run launcher that infra/dagster/kubernetes.yaml configures, which reaches no cluster."""
    from dagster_k8s import K8sRunLauncher

    profile = yaml.safe_load((INFRA / "dagster" / "kubernetes.yaml").read_text())
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "none",
                "clusters": [{"name": "none", "cluster": {"server": "http://127.0.0.1:9"}}],
                "contexts": [{"name": "none", "context": {"cluster": "none", "user": "none"}}],
                "users": [{"name": "none", "user": {}}],
            }
        )
    )
    given = profile["run_launcher"]["config"]
    return K8sRunLauncher(
        **given, dagster_home="/opt/dagster", load_incluster_config=False, kubeconfig_file=str(kubeconfig)
    )


@pytest.mark.parametrize("gpu", [False, True], ids=["CPU", "GPU"])
def test_the_pods_of_runs_and_steps_are_admitted_by_a_restricted_namespace(
    gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dagster import DagsterRun
    from dagster_k8s.container_context import K8sContainerContext
    from dagster_k8s.job import (
        DagsterK8sJobConfig,
        UserDefinedDagsterK8sConfig,
        construct_dagster_k8s_job,
    )
    from kubernetes.client import ApiClient

    from pipelines.cluster import node

    monkeypatch.setenv("CLIPGEN_GPU_NODES", "nvidia.com/gpu.present=true")
    launcher = run_launcher(tmp_path)
    context = K8sContainerContext.create_for_run(DagsterRun("clip_gen"), launcher, include_run_tags=False)
    config = context.get_k8s_job_config(job_image="registry.example/clipgen:0.1.0", run_launcher=launcher)
    assert isinstance(config, DagsterK8sJobConfig)
    if not gpu:
        monkeypatch.setenv("CLIPGEN_CONFIG", str(INFRA / "run_configs" / "l.yaml"))  # its GPUs are on Ray
    of_step = UserDefinedDagsterK8sConfig.from_dict(node("vqgan", memory=16)["dagster-k8s/config"])
    for own in (context, context.merge(K8sContainerContext(run_k8s_config=of_step))):
        job = construct_dagster_k8s_job(
            config, ["dagster", "api", "execute_run"], "job", own.run_k8s_config, "pod"
        )
        made = ApiClient().sanitize_for_serialization(job)
        kubernetes_validate.validate(made, "1.37", strict=True)
        pod = made["spec"]["template"]["spec"]
        assert not violations(pod)
        assert pod["terminationGracePeriodSeconds"] >= 600
        assert pod["containers"][0]["volumeMounts"] == [{"name": "shm", "mountPath": "/dev/shm"}]
    assert ("nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]) == gpu


def test_the_optional_manifests_fit_their_schemas() -> None:
    files = sorted((INFRA / "kubernetes" / "optional").glob("*.yaml"))
    every = [one for file in files for one in yaml.safe_load_all(file.read_text())]
    assert {one["kind"] for one in every} == {"Ingress", "PodMonitor", "ExternalSecret"}
    for one in every:
        assert one["metadata"]["namespace"] == "clipgen"
        if one["apiVersion"].endswith(".k8s.io/v1"):
            kubernetes_validate.validate(one, "1.37", strict=True)
    (ingress,) = (one for one in every if one["kind"] == "Ingress")
    served = {
        path["backend"]["service"]["name"]
        for rule in ingress["spec"]["rules"]
        for path in rule["http"]["paths"]
    }
    assert served == {"mlflow", "page"} and "auth-secret" in str(ingress["metadata"]["annotations"])
    host = ingress["spec"]["rules"][0]["host"]
    (mlflow,) = (
        one for _, one in manifests() if one["kind"] == "Deployment" and one["metadata"]["name"] == "mlflow"
    )
    assert any(host in argument for argument in mlflow["spec"]["template"]["spec"]["containers"][0]["args"])


@pytest.mark.parametrize(
    ("command", "joins"),
    [("dagster api grpc", False), ("dagster api execute_run x", True), ("dagster api execute_step x", True)],
)
def test_runs_and_steps_join_ray_and_code_locations_do_not(command: str, joins: bool, tmp_path: Path) -> None:
    for name, line in (("ray", 'echo "ray $*" >&2'), ("dagster", "echo started")):
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    entrypoint = str(INFRA / "docker" / "entrypoint.sh")
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = run(entrypoint, *command.split(), PATH=path, RAY_ADDRESS="ray-head-svc:6379")
    assert done.stdout == "started\n", done.stderr
    assert ("ray start --address=ray-head-svc:6379" in done.stderr) == joins


def test_the_ray_clusters_pods_are_pods() -> None:
    cluster = yaml.safe_load((INFRA / "kubernetes" / "raycluster.yaml").read_text())
    autoscaler = {
        "name": "autoscaler",
        "securityContext": cluster["spec"]["autoscalerOptions"]["securityContext"],
    }
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    for group in groups:
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "ray"},
            "spec": group["template"]["spec"],
        }
        kubernetes_validate.validate(pod, "1.37", strict=True)
        pod["spec"]["containers"].append(autoscaler)  # KubeRay adds it to the head
        assert not violations(pod["spec"])


@pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl")
def test_kubectl_renders_what_is_ours_and_reads_the_secret(tmp_path: Path) -> None:
    rendered = [
        one for one in yaml.safe_load_all(run("kubectl", "kustomize", "infra/kubernetes").stdout) if one
    ]
    assert len(rendered) == len(manifests())
    for one in rendered:
        kubernetes_validate.validate(one, "1.37", strict=True)
        cluster_wide = one["kind"] in ("Namespace", "PriorityClass")
        assert cluster_wide or one["metadata"]["namespace"] == "clipgen"
        for pod in [one["spec"]["template"]["spec"]] if one["kind"] == "Deployment" else []:
            assert {c["image"] for c in pod["containers"]} == {"registry.example/clipgen:0.1.0"}
    (tmp_path / "FILE").write_text("AWS_ACCESS_KEY_ID=someone\nAWS_SECRET_ACCESS_KEY=s3cr3t\n")
    (line,) = [
        text
        for text in commands(REPOSITORY / "docs" / "cluster.md")
        if text.startswith("kubectl -n clipgen create")
    ]
    command = line.replace("=FILE", f"={tmp_path}/FILE").split()
    made = yaml.safe_load(run(*command, "--dry-run=client", "-o", "yaml").stdout)
    assert made["metadata"] == {"name": "clipgen", "namespace": "clipgen", "creationTimestamp": None}
    assert made["data"].keys() == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
