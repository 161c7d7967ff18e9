"""What the documentation and the run configs say is what the code takes."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import typer
import yaml
from dagster_shared.yaml_utils import merge_yamls

from clipgen_core.cli import app
from clipgen_core.recipes import RECIPES, named
from pipelines.definitions import defs
from pipelines.defs.embeddings import ClipEmbeddingsConfig
from pipelines.defs.tokens import TokenShardsConfig
from pipelines.defs.transformer import TransformerCheckpointConfig
from tests.conftest import blocks, commands

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()
DOCS = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "infra/README.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
RUN_BY = {
    r"make (demo|demo QUICK=1|ui)$": "test_demo.py::test_the_quick_demo_from_pictures_to_a_registered_model",
    r"clipgen (generate|search|vary|champions|lineage)": "test_demo.py::documented_commands",
    r"clipgen (edit|extend) ": "core/cli/test_cli.py::test_edits_and_extensions_need_a_model_of_any_order",
    r"clipgen generate .* -m public/$": "core/published/test_published.py::"
    "test_the_public_generator_makes_pictures",
    r"clipgen (export|generate .* -m model.clipgen)": "core/generation/test_export.py::"
    "test_the_command_exports_what_generate_takes",
    r"clipgen ui$": "browser/test_ui.py::test_a_prompt_becomes_pictures_with_scores_neighbours_and_a_history",
    r"clipgen serve": "core/serving/test_server.py::test_openais_client_generates_streams_and_edits",
    r"clipgen (promote( \d+)?|rollback)$": "core/registry/test_champions.py::"
    "test_promotion_roll_back_and_their_history",
    r"clipgen register$": "pipelines/test_mlflow_away.py::"
    "test_a_registry_that_was_away_gets_the_model_without_another_evaluation",
    r"clipgen import-vqgan": "core/published/test_published.py::"
    "test_a_published_vqgan_gives_the_published_codes_and_pictures",
    r"clipgen import-transformer": "core/published/test_published.py::"
    "test_the_commands_print_what_starts_a_training",
    r"clipgen import-generator": "core/published/test_published.py::test_the_public_generator_makes_pictures",
    r"clipgen settings": "core/cli/test_settings.py::test_a_stage_is_readable_at_100_columns",
    r"clipgen train /data/photos --minutes": "core/cli/test_train.py::"
    "test_one_command_makes_a_model_of_a_folder",
    r"clipgen (train /data/photos --dry-run|init)": "core/cli/test_train.py::"
    "test_a_dry_run_writes_nothing_and_init_writes_run_configs",
    r"clipgen plan": "core/plan/test_plan.py::test_the_command_prints_needs_and_verdicts",
    r"clipgen check": "core/preflight/test_preflight.py::"
    "test_the_command_says_a_line_a_check_and_ends_with_exit_code_two",
    r"clipgen (train-stage|tokens|evaluate) .*--recipe photos$": "core/cli/test_stages.py::"
    "test_all_stages_run_without_dagster",
    r"clipgen folders$": "core/cli/test_cli.py::test_names_with_brackets_are_printed_as_they_are",
    r"clipgen prune": "core/data/test_prune.py::test_the_command_asks_for_yes",
    r"clipgen gc ": "core/registry/test_unused.py::test_the_command_reports_first_and_removes_with_yes",
    r"clipgen forget ID --root": "core/registry/test_kept.py::test_no_file_holds_an_image_after_a_purge",
    r"clipgen (import|export)-embeddings": "core/data/test_exchange.py::test_the_commands",
    r"clipgen embed": "core/stages/test_images.py::"
    "test_a_mended_file_is_no_reject_any_more_and_rejects_can_be_tried_again",
    r"mlflow models serve|curl|export": "core/registry/test_champions.py::"
    "test_mlflow_serves_the_model_over_http",
    r"torchrun .* train-stage transformer": "core/cli/test_train_stage.py::"
    "test_torchrun_trains_in_two_processes",
    r"python -m pipelines.killed$": "pipelines/test_killed.py::"
    "test_a_killed_run_is_failed_and_leaves_its_slot",
    r"python examples/generate.py": "test_examples.py::test_images_are_generated_and_saved",
    r"python examples/embed_and_search.py": "test_examples.py::test_a_folder_is_embedded_and_searched",
    r"python examples/train_on_folder.py": "test_examples.py::test_a_folder_becomes_a_generator",
    r"infra/compose/secrets.sh$": "test_infra.py::test_secrets_are_made_once",
    r"kubectl .*create secret": "test_infra.py::test_kubectl_renders_what_is_ours_and_reads_the_secret",
    r"kubectl apply -k": "test_infra.py::test_kubectl_renders_what_is_ours_and_reads_the_secret",
}
NOT_RUN = {
    r"make (test|check)$": "what runs this",
    r"make demo LONG=1$": "40 minutes: the config is checked",
    r"pip install": "a package index",
    r"python -m benchmarks": "minutes of all cores: its parts are tested in tests/benchmarks",
    r"dagster job execute .* -c (my|infra/run_configs/l).yaml$": "GPUs: the config is checked",
    r"docker compose": "an engine: the file is checked against its schema",
    r"kubectl .*(get pod|port-forward|exec)": "a cluster",
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
    page = (REPOSITORY / "docs" / "cli.md").read_text()
    assert all(f"`clipgen {name}`" in page for name in group.commands)  # type: ignore[attr-defined]
    for name, rest in lines:
        known = {option for p in group.commands[name].params for option in p.opts}  # type: ignore[attr-defined]
        assert set(re.findall(r"(?<= )--?[a-z][\w-]*", rest)) <= known


def test_the_run_config_of_your_own_images_is_valid() -> None:
    (config, *_) = run_configs(REPOSITORY / "docs" / "images.md")
    assert config["resources"].keys() >= {"storage", "recipe"}
    assert config["resources"]["mlflow"]["config"]["model"] != "clip-gen"  # a champion of its own
    assert dg.validate_run_config(defs().resolve_job_def("clip_gen"), config)


def test_the_first_commands_of_your_own_images_make_the_folder_they_name(tmp_path: Path) -> None:
    every = blocks(REPOSITORY / "docs" / "images.md", "sh")
    (block,) = (one for one in every if "mkdir" in one)
    *before, job = block.splitlines()
    assert job.startswith("dagster job execute")
    checked = "\n".join([*before, 'test -d "$DAGSTER_HOME"'])
    subprocess.run(["bash", "-euc", checked], cwd=tmp_path, check=True)


@pytest.mark.parametrize("file", DOCS, ids=lambda file: file.name)
def test_every_run_config_in_the_docs_is_valid(file: Path) -> None:
    for config in run_configs(file):
        assert dg.validate_run_config(defs().resolve_job_def("clip_gen"), config)


def run_configs(file: Path) -> list[dict[str, Any]]:
    return [yaml.safe_load(block) for block in blocks(file, "yaml")]


def test_the_run_configs_of_the_docs_are_found() -> None:
    assert sum(len(run_configs(file)) for file in DOCS) >= 8


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
    assets = {
        "clip_embeddings": ClipEmbeddingsConfig,
        "token_shards": TokenShardsConfig,
        "transformer_checkpoint": TransformerCheckpointConfig,
    }
    overrides = {}
    for asset, kind in assets.items():
        overrides |= kind(**config["ops"][asset]["config"]).overrides()
    recipe = named(name).override(overrides)
    assert recipe.embeddings.compute.where == recipe.tokens.compute.where == "ray"
    assert recipe.embeddings.compute.gpus == 1 and recipe.embeddings.batch_size == 1024


def test_every_picture_and_path_the_readme_names_exists() -> None:
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (REPOSITORY / picture).is_file()
    for file in DOCS:
        for path in re.findall(
            r"`((?:clipgen_core|pipelines|infra|docs|examples|benchmarks)/[\w/.-]*)`", file.read_text()
        ):
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


def test_the_site_builds_without_a_warning_and_loads_nothing_from_the_network(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {page.parent.name: page.read_text() for page in tmp_path.rglob("index.html")}
    assert len(pages) == len(list((REPOSITORY / "docs").glob("*.md")))
    for name, page in pages.items():
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"?([^\s\">]+)", page)
        loaded += re.findall(
            r"<link[^>]* href=\"?([^\s\">]+)[^>]*rel=\"?(?:stylesheet|icon|preconnect)", page
        )
        loaded += re.findall(
            r"<link[^>]* rel=\"?(?:stylesheet|icon|preconnect)[^>]* href=\"?([^\s\">]+)", page
        )
        assert loaded and not [url for url in loaded if re.match(r"(\w+:)?//", url)], name
    assert "clipgen import-vqgan" in pages["cli"] and "--guidance-scale" in pages["cli"]
    assert "from_pretrained" in pages["api"] and "ClipgenError" in pages["api"]


def test_make_help_lists_every_target_and_is_the_default() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.M))
    for arguments in ([], ["help"]):
        done = subprocess.run(
            ["make", "--no-print-directory", *arguments],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
        listed = re.findall(r"^make (\w+) +\w.+$", done.stdout, flags=re.M)
        assert set(listed) == targets and len(listed) == len(done.stdout.splitlines())
