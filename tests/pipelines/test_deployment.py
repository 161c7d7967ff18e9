"""What the run config that CLIPGEN_CONFIG names says holds for every run."""

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from clipgen_core.config_files import with_deployed
from clipgen_core.run_config import read_run
from pipelines.cluster import GPU, node
from pipelines.config import StageConfig, TrainingConfig, of_stage
from pipelines.deployment import deployment

RUN_CONFIGS = Path(__file__).parents[2] / "infra" / "run_configs"


@pytest.fixture
def l_on_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPGEN_CONFIG", str(RUN_CONFIGS / "l.yaml"))


def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "deployment.yaml").write_text(text)
    monkeypatch.setenv("CLIPGEN_CONFIG", str(tmp_path / "deployment.yaml"))


def test_a_run_without_a_run_config_trains_on_eight_gpus(l_on_eight: None) -> None:
    @of_stage("transformer")
    class TransformerConfig(TrainingConfig):
        """Settings of the stage transformer, and where it is trained."""

    seen: list[TransformerConfig] = []

    @dg.asset
    def trained(config: TransformerConfig) -> None:
        seen.append(config)

    def run(**config: object) -> TransformerConfig:
        assert dg.materialize([trained], run_config={"ops": {"trained": {"config": config}}}).success
        return seen[-1]

    alone = run()
    assert (alone.processes, alone.workers_on, alone.gpu) == (8, "ray", True)
    assert alone.overrides() == {"transformer.train.parallel": "fsdp", "transformer.train.compile": True}
    launched = run(processes=4, workers_on="here", train={"compile": False, "steps": 7})
    assert (launched.processes, launched.workers_on) == (4, "here")
    assert launched.overrides() == {
        "transformer.train.parallel": "fsdp",
        "transformer.train.compile": False,
        "transformer.train.steps": 7,
    }


def test_a_folder_is_embedded_where_the_whole_source_is(l_on_eight: None) -> None:
    @of_stage("embeddings")
    class EmbeddingsConfig(StageConfig):
        """Settings of the stage embeddings."""

    assert EmbeddingsConfig().overrides()["embeddings.compute.workers"] == 8
    checked = read_run(with_deployed({}, ["folder_embeddings"]), ["folder_embeddings"])
    assert checked.recipe.embeddings.compute.where == "ray" and checked.problems == ()


def test_the_recipe_and_the_root_come_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPGEN_ROOT", "/from/the/environment")
    monkeypatch.setenv("OUR_SOURCE", "/our/photos")
    text = "resources: {recipe: {config: {name: l}}, images: {config: {source: {env: OUR_SOURCE}}}}"
    written(tmp_path, monkeypatch, text)
    resources = deployment().resources
    assert resources["recipe"]["name"] == "l" and resources["images"]["source"] == "/our/photos"
    assert resources["storage"]["root"] == "/from/the/environment"


def test_a_step_asks_for_the_gpus_that_it_uses_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPGEN_GPU_NODES", "accelerator=h100")
    monkeypatch.setenv("CLIPGEN_MEMORY", "48")
    written(
        tmp_path,
        monkeypatch,
        """ops:
          transformer_checkpoint: {config: {processes: 8}}
          vqgan_checkpoint: {config: {workers_on: ray}}""",
    )
    here, on_ray, embedding = node("transformer", 32), node("vqgan", 32), node("embeddings", 16)
    asked = here["dagster-k8s/config"]["container_config"]["resources"]
    assert asked["limits"] == {"memory": "384Gi", GPU: "8"} and asked["requests"]["cpu"] == "32"
    assert here["dagster-ray/config"] == {"num_gpus": 8}
    assert "dagster-ray/config" not in on_ray and GPU not in str(on_ray) and "h100" not in str(on_ray)
    assert embedding["dagster-k8s/config"]["container_config"]["resources"]["limits"][GPU] == "1"
    assert embedding["dagster-k8s/config"]["pod_spec_config"]["node_selector"] == {"accelerator": "h100"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "ops: {transformer_checkpoint: {config: {processes: 0}}}",
            "config.processes is 0",
        ),
        (
            "ops: {vqgan_checkpoint: {config: {workers_on: gpu}}}",
            "config.workers_on is 'gpu'",
        ),
        ("ops: {vqgan: {config: {processes: 8}}}", "ops has no 'vqgan'"),
        ("ops: {clip_embeddings: {config: {compute: {wher: ray}}}}", "compute.wher"),
        ("resources: {recipe: {config: {name: huge}}}", "the list of recipes has no 'huge'"),
        ("resources: {images: {config: {source: {env: NOT_SET}}}}", "variable NOT_SET is not set: set it"),
        ("execution: {config: {in_process: {}}}", "take out 'execution'"),
        ("[1, 2]", "holds no mapping"),
    ],
)
def test_a_mistake_is_one_sentence_when_the_definitions_are_loaded(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, monkeypatch, text)
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="CLIPGEN_CONFIG") as raised:
        deployment()
    assert said in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("CLIPGEN_MEMORY", "64Gi", "write the memory of each process in GiB"),
        ("CLIPGEN_MEMORY", "0", "write the memory of each process in GiB"),
        ("CLIPGEN_GPU_NODES", "h100", "write a label of the GPU nodes as key=value"),
    ],
)
def test_a_variable_without_sense_is_named(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(dg.DagsterInvalidDefinitionError, match=f"{name} is '{value}': {said}"):
        node("vqgan", 32)


def test_the_definitions_of_a_code_location_have_it() -> None:
    code = (
        "import dagster as dg\nfrom pipelines.definitions import defs\n"
        "op = defs().resolve_assets_def(dg.AssetKey('transformer_checkpoint')).op\n"
        "print(op.config_schema.config_type.fields['processes'].default_value, op.tags)"
    )
    there = {"CLIPGEN_CONFIG": str(RUN_CONFIGS / "l.yaml")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | there, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("8 ") and GPU not in done.stdout
    there = {"CLIPGEN_CONFIG": "/no/such.yaml"}
    done = subprocess.run(command, env=os.environ | there, capture_output=True, text=True, check=False)
    said = "CLIPGEN_CONFIG: run config /no/such.yaml does not exist: check the path"
    assert done.returncode and said in done.stderr
