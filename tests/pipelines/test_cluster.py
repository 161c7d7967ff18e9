import dagster as dg
import pytest

from pipelines.cluster import executor, node
from pipelines.definitions import defs


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
    asked = node(memory="32Gi", gpu=True)["dagster-k8s/config"]
    assert asked["container_config"]["resources"]["limits"] == {"memory": "32Gi", "nvidia.com/gpu": "1"}
    assert asked["pod_spec_config"]["node_selector"] == {"accelerator": "l4"}
    assert "pod_spec_config" not in node(memory="1Gi")["dagster-k8s/config"]
    for name in ("vqgan_checkpoint", "transformer_checkpoint", "clip_embeddings", "token_shards"):
        tags = defs().resolve_assets_def(dg.AssetKey(name)).op.tags
        assert "nvidia.com/gpu" in str(tags["dagster-k8s/config"])
