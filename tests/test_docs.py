"""What the README and the run configs say is what the code takes."""

import re
from pathlib import Path

import dagster as dg
import pytest
import typer
import yaml
from dagster_shared.yaml_utils import merge_yamls

from clipgen_core.cli import app
from clipgen_core.recipes import RECIPES, configure
from pipelines.definitions import defs
from tests.conftest import commands

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()
DOCS = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "infra/README.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
RUN_BY = {
    r"make (demo|ui)$": "test_demo.py::test_the_quick_demo_from_pictures_to_a_registered_model",
    r"clipgen (generate|search|vary|champions|lineage)": "test_demo.py::readme_commands",
    r"clipgen generate .* -m public/$": "core/published/test_published.py::"
    "test_the_public_generator_makes_pictures",
    r"clipgen ui$": "browser/test_ui.py::test_a_prompt_becomes_pictures_with_scores_neighbours_and_a_history",
    r"clipgen (promote|rollback)$": "core/registry/test_champions.py::"
    "test_promotion_roll_back_and_their_history",
    r"clipgen import-vqgan": "core/published/test_published.py::"
    "test_a_published_vqgan_gives_the_published_codes_and_pictures",
    r"clipgen import-generator": "core/published/test_published.py::test_the_public_generator_makes_pictures",
    r"mlflow models serve|curl|export": "core/registry/test_champions.py::"
    "test_mlflow_serves_the_model_over_http",
    r"infra/compose/secrets.sh$": "test_infra.py::test_secrets_are_made_once",
    r"kubectl .*create secret": "test_infra.py::test_kubectl_renders_what_is_ours_and_reads_the_secret",
    r"kubectl apply -k": "test_infra.py::test_kubectl_renders_what_is_ours_and_reads_the_secret",
}
NOT_RUN = {
    r"make (test|check)$": "what runs this",
    r"dagster job execute .* -c (my|infra/run_configs/l).yaml$": "GPUs: the config is checked",
    r"docker compose": "an engine: the file is checked against its schema",
    r"kubectl .*raycluster.yaml$": "a cluster with KubeRay: its pods are checked against their schema",
    r"helm .*install dagster": "a cluster and Dagster's chart: values are compared with the profile",
}


def test_the_first_lines_are_the_front_door() -> None:
    commands = [line.split() for line in README.splitlines() if line.startswith("    make ")]
    assert [words[1] for words in commands[:2]] == ["demo", "test"]
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.M))
    assert {words[1] for words in commands} <= targets


def test_every_clipgen_command_and_option_exists() -> None:
    group = typer.main.get_command(app)
    text = "\n".join(file.read_text() for file in DOCS)
    lines = re.findall(r"clipgen ([a-z][\w-]+) ?([^`\n]*)", text)
    lines = [(name, rest) for name, rest in lines if name in group.commands]  # type: ignore[attr-defined]
    assert {name for name, _ in lines} >= {
        "generate",
        "search",
        "plan",
        "prune",
        "folders",
        "embed",
        "import-vqgan",
        "promote",
        "rollback",
        "lineage",
        "champions",
        "ui",
    }
    for name, rest in lines:
        known = {option for p in group.commands[name].params for option in p.opts}  # type: ignore[attr-defined]
        assert set(re.findall(r"(?<= )--?[a-z][\w-]*", rest)) <= known


def test_the_run_config_of_your_own_pictures_is_valid() -> None:
    block = re.search(r"^    resources:\n(?:    .*\n|\n)+?(?=\n    dagster)", README, flags=re.M)
    assert block
    config = yaml.safe_load("\n".join(line[4:] for line in block.group().splitlines()))
    assert dg.validate_run_config(defs().resolve_job_def("clip_gen"), config)


def test_the_settings_for_ray_exist() -> None:
    (line,) = re.findall(r"^    clip_embeddings: (\{config.+)$", README, flags=re.M)
    config = yaml.safe_load(line)["config"]
    assert configure("b", "embeddings", config["overrides"]).compute.workers == 8


def test_the_judges_run_configs_are_valid() -> None:
    folder = REPOSITORY / "infra" / "run_configs"
    for job, file in (("clip_training", "judge-clip.yaml"), ("evaluation", "judge.yaml")):
        config = yaml.safe_load((folder / file).read_text())
        assert dg.validate_run_config(defs().resolve_job_def(job), config)


@pytest.mark.parametrize("name", ["demo", "quick", "long"])
def test_the_shipped_run_configs_are_valid(name: str) -> None:
    folder = REPOSITORY / "infra" / "run_configs"
    for job, file in (("clip_gen", "demo.yaml"), ("clip_training", "demo-clip.yaml")):
        override = [] if name == "demo" else [str(folder / f"{name}.yaml")]
        merged = merge_yamls([str(folder / file), *override])  # as `dagster job execute -c A -c B` does
        config = dg.validate_run_config(defs().resolve_job_def(job), merged)
        assert config["resources"]["recipe"]["config"]["name"] == name in RECIPES


@pytest.mark.parametrize("name", ["paper", "l"])
def test_the_run_configs_for_gpus_set_what_their_recipe_takes(name: str) -> None:
    config = yaml.safe_load((REPOSITORY / "infra" / "run_configs" / f"{name}.yaml").read_text())
    checked = dg.validate_run_config(defs().resolve_job_def("clip_gen"), config)
    assert checked["resources"]["recipe"]["config"]["name"] == name
    stages = {
        "clip_embeddings": "embeddings",
        "token_shards": "tokens",
        "transformer_checkpoint": "transformer",
    }
    for asset, stage in stages.items():
        assert configure(name, stage, config["ops"][asset]["config"].get("overrides", {}))


def test_every_picture_and_path_the_readme_names_exists() -> None:
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (REPOSITORY / picture).is_file()
    for file in DOCS:
        for path in re.findall(r"`((?:clipgen_core|pipelines|infra|docs)/[\w/.-]*)`", file.read_text()):
            assert (REPOSITORY / path).exists(), (file, path)
        for path in re.findall(r"\]\((?!http)([^)#]+)\)", file.read_text()):
            assert (file.parent / path).exists(), (file, path)


def test_every_command_of_the_docs_is_run_by_a_test_or_said_not_to_be() -> None:
    written = [line for file in DOCS for line in commands(file)]
    assert len(written) > 25
    for line in written:
        assert any(re.search(pattern, line) for pattern in (*RUN_BY, *NOT_RUN)), line
    for pattern in (*RUN_BY, *NOT_RUN):
        assert any(re.search(pattern, line) for line in written), pattern
    for test in RUN_BY.values():
        file, _, name = test.partition("::")
        assert f"def {name}(" in (REPOSITORY / "tests" / file).read_text(), test
