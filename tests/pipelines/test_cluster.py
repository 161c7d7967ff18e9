import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from tenacity import Retrying, stop_after_delay, wait_fixed

from clipgen_core.data.tables import column
from clipgen_core.storage import Storage
from pipelines.cluster import executor, node
from pipelines.definitions import defs
from tests.conftest import free_port, two_ray_nodes

INSTANCE = Path(__file__).parents[2] / "infra" / "dagster" / "local.yaml"


@pytest.mark.parametrize(
    ("name", "executes"),
    [
        ("", "multi_or_in_process_executor"),
        ("processes", "multi_or_in_process_executor"),
        ("in-process", "in_process"),
        ("kubernetes", "k8s"),
        ("ray", "ray"),
    ],
)
def test_the_environment_chooses_the_executor(
    monkeypatch: pytest.MonkeyPatch, name: str, executes: str
) -> None:
    monkeypatch.setenv("CLIPGEN_EXECUTOR", name)
    assert executor().name == executes
    assert defs().resolve_job_def("clip_gen").executor_def.name == executes


def test_an_executor_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPGEN_EXECUTOR", "gpu")
    with pytest.raises(
        dg.DagsterInvalidDefinitionError, match="choose processes, in-process, kubernetes or ray"
    ):
        executor()


def test_training_asks_for_a_gpu_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPGEN_GPU_NODES", "accelerator=l4")
    asked = node("vqgan", memory=32)["dagster-k8s/config"]
    assert asked["container_config"]["resources"]["limits"] == {"memory": "32Gi", "nvidia.com/gpu": "1"}
    assert asked["pod_spec_config"]["node_selector"] == {"accelerator": "l4"}
    for name in ("vqgan_checkpoint", "transformer_checkpoint", "clip_embeddings", "token_shards"):
        tags = defs().resolve_assets_def(dg.AssetKey(name)).op.tags
        assert "nvidia.com/gpu" in str(tags["dagster-k8s/config"])


def clip_gen_job() -> dg.JobDefinition:
    return defs().resolve_job_def("clip_gen")


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").write_bytes(INSTANCE.read_bytes())
    with dg.DagsterInstance.get() as made:
        yield made


@pytest.mark.slow
def test_a_run_by_the_ray_executor_starts_each_step_where_its_tags_say(
    only_ray: None,
    instance: dg.DagsterInstance,
    pictures: Path,
    clip_reference: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLIPGEN_EXECUTOR", "ray")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    run_config = {
        "resources": {
            "storage": {"config": {"root": str(tmp_path / "root")}},
            "images": {"config": {"source": str(pictures / "pictures"), "clip": clip_reference}},
            "recipe": {"config": {"name": "quick"}},
            "mlflow": {"config": {"local_folder": str(tmp_path / "mlflow")}},
        }
    }
    head = ["--include-dashboard=true", f"--dashboard-port={free_port()}"]
    with two_ray_nodes(head=head, second=["--num-gpus=1"]) as address:
        wait_until_jobs_are_taken(address)
        done = dg.execute_job(
            dg.reconstructable(clip_gen_job),
            instance,
            run_config=run_config,
            asset_selection=[dg.AssetKey("raw_images"), dg.AssetKey("clip_embeddings")],
        )
        assert done.success
        gpus = gpus_where_steps_ran(address)
    assert gpus == {"raw_images": 0, "clip_embeddings": 1}
    out = Storage(str(tmp_path / "root"))
    taken = column(out.images, "id")
    assert len(taken) == len(list((pictures / "pictures").rglob("*.png")))
    assert sorted(column(out.current("embeddings", "tests").path, "id")) == sorted(taken)


def wait_until_jobs_are_taken(address: str) -> None:
    """The agent that starts jobs is up some seconds after the node, on a busy machine more than Ray waits."""
    from ray.job_submission import JobSubmissionClient

    for attempt in Retrying(stop=stop_after_delay(300), wait=wait_fixed(1), reraise=True):
        with attempt:
            JobSubmissionClient(address).submit_job(entrypoint="true")


def gpus_where_steps_ran(address: str) -> dict[str, int]:
    """How many GPUs the node has on which each step's Ray job ran."""
    from ray.job_submission import JobSubmissionClient
    from ray.util.state import list_nodes

    client = JobSubmissionClient(address)
    nodes = {one.node_id: one.resources_total for one in list_nodes(client.get_address())}
    jobs = [one for one in client.list_jobs() if one.metadata]
    return {one.metadata["dagster/op"]: int(nodes[one.driver_node_id].get("GPU", 0)) for one in jobs}
