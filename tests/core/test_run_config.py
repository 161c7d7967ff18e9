from pathlib import Path
from typing import Any

import pytest

from clipgen_core.assets import JOBS
from clipgen_core.config_files import read_files
from clipgen_core.errors import ClipgenError
from clipgen_core.run_config import Run, job_of, read_run


def read(config: dict[str, Any], job: str = "clip_gen", **environment: str) -> Run:
    return read_run(config, JOBS[job], environment)


def test_what_is_given_overrides_the_recipe_and_the_environment() -> None:
    run = read(
        {
            "execution": {"config": {"in_process": {}}},
            "resources": {"recipe": {"config": {"name": "long"}}, "storage": {"config": {"root": None}}},
            "ops": {
                "vqgan_checkpoint": {"config": {"train": {"steps": 3, "seed": None}, "processes": 2}},
                "evaluation_report": {"config": {"prompts": "p.csv", "thresholds": {"min_prompts": 4}}},
            },
        },
        CLIPGEN_ROOT="s3://bucket/root",
        CLIPGEN_RECIPE="quick",
    )
    assert run.problems == () and run.overrides == 2
    assert run.recipe.vqgan.train.steps == 3 and run.recipe.evaluation.thresholds.min_prompts == 4
    assert run.recipe.vqgan.model.quantizer.codebook_size == 512  # of the recipe long
    assert run.own["vqgan_checkpoint"] == {"processes": 2}
    assert run.own["evaluation_report"] == {"prompts": "p.csv"}
    assert run.root == "s3://bucket/root"


def test_values_from_the_environment_are_those_of_the_run() -> None:
    config = {"resources": {"images": {"config": {"source": {"env": "PHOTOS"}}}}}
    assert read(config, PHOTOS="/data").resources["images"]["source"] == "/data"
    assert "the environment variable PHOTOS is not set" in read(config).problems[0]


def in_ops(asset: str, **config: Any) -> dict[str, Any]:
    return {"ops": {asset: {"config": config}}}


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"op": {}}, "the run config has no 'op': did you mean 'ops'?"),
        (
            {"ops": {"vqgan_checkpoint": {"config": {"train": {"recompute": True}}}}},
            "ops.vqgan_checkpoint.config has no 'train.recompute': did you mean 'recompute'?",
        ),
        ({"ops": {"vqgan_checkpint": {}}}, "ops has no 'vqgan_checkpint': did you mean 'vqgan_checkpoint'?"),
        (
            in_ops("vqgan_checkpoint", train={"step": 3}),
            "ops.vqgan_checkpoint.config has no 'train.step': did you mean 'train.steps'?",
        ),
        (
            in_ops("evaluation_report", prompt="p.csv"),
            "ops.evaluation_report.config has no 'prompt': did you mean 'prompts'?",
        ),
        (in_ops("vqgan_checkpoint", train=3), "has no 'train': set one of the group, such as 'train.steps'"),
        (
            in_ops("vqgan_checkpoint", train={"learning_rate": "1e-4"}),
            "ops.vqgan_checkpoint.config.train.learning_rate is the text '1e-4': write a number",
        ),
        (in_ops("vqgan_checkpoint", train={"steps": "many"}), "is the text 'many': write a whole number"),
        (in_ops("vqgan_checkpoint", train={"steps": True}), "train.steps is true: write a whole number"),
        (in_ops("vqgan_checkpoint", train={"steps": 20.5}), "train.steps is 20.5: write a whole number"),
        (in_ops("vqgan_checkpoint", train={"compile": "yes"}), "is the text 'yes': write true or false"),
        (in_ops("vqgan_checkpoint", start_from=""), "'vqgan.start_from' is ''"),
        (
            in_ops("vqgan_checkpoint", processes=0),
            "ops.vqgan_checkpoint.config.processes is 0: it should be greater than or equal to 1",
        ),
        (in_ops("vqgan_checkpoint", workers_on="mars"), "workers_on is 'mars': it should be 'here' or 'ray'"),
        (in_ops("transformer_checkpoint", restarts=-1), "restarts is -1: it should be greater than or equal"),
        (in_ops("raw_images", max_reject_share="few"), "max_reject_share is 'few': it should be a valid num"),
        (in_ops("champion", version=3), "ops.champion.config has no 'version': it takes no settings"),
        (
            in_ops("token_shards", views=0),
            "token_shards: the setting 'tokens.views' is 0: it should be greater than or equal to 1",
        ),
        (
            {"ops": {"token_shards": {"views": 2}}},
            "ops.token_shards has 'views': put it under ops.token_shards.",
        ),
        ({"ops": {"token_shards": {"config": [1]}}}, "ops.token_shards.config is [1]: write a mapping"),
        (
            {"resources": {"storage": {"config": {"rot": "x"}}}},
            "resources.storage.config has no 'rot': did you mean 'root'?",
        ),
        (
            {"resources": {"recipe": {"config": {"name": "dmo"}}}},
            "the list of recipes has no 'dmo': did you mean 'demo'?",
        ),
    ],
)
def test_a_mistake_is_one_sentence_that_guesses_what_was_meant(config: dict[str, Any], problem: str) -> None:
    (said,) = read(config).problems
    assert problem in said


def test_what_is_allowed_holds_beside_a_mistake() -> None:
    settings = {"train": {"steps": 20.5, "batch_size": 6, "betas": [2, 0.9]}, "perceptual_blocks": 1}
    read_so = read(in_ops("vqgan_checkpoint", **settings))
    assert len(read_so.problems) == 2 and read_so.unclear == {"vqgan_checkpoint"}
    assert read_so.recipe.vqgan.perceptual_blocks == 1 and read_so.recipe.vqgan.train.batch_size == 6
    model = {"width": 40, "heads": 2}
    both = read(in_ops("transformer_checkpoint", model=model, corrupt=7)).recipe.transformer.model
    assert (both.width, both.heads) == (40, 2)  # of which neither would fit the recipe's other value


def test_the_settings_of_the_upkeep() -> None:
    assert read(in_ops("table_upkeep", keep_days=3), "upkeep").problems == ()
    assert "keep_days is -1" in read(in_ops("table_upkeep", keep_days=-1), "upkeep").problems[0]
    assert "did you mean 'keep_days'" in read(in_ops("table_upkeep", keep_day=1), "upkeep").problems[0]


def test_all_mistakes_are_said_at_once() -> None:
    config = in_ops("vqgan_checkpoint", train={"step": 3, "seed": -1, "micro_batch": 0}, smallest_crop=7)
    said = read(config | {"resources": {"image": {}}}).problems
    assert len(said) == 5
    for part in ("'image'", "'train.step'", "train.seed", "train.micro_batch", "smallest_crop"):
        assert any(part in one for one in said), part


def test_files_are_merged_and_the_last_value_wins(tmp_path: Path) -> None:
    first, second, list_only, broken = (str(tmp_path / f"{name}.yaml") for name in "abcd")
    Path(first).write_text("ops: {clip_checkpoint: {config: {captions: x.csv, text_layers: 2}}}")
    Path(second).write_text("ops: {clip_checkpoint: {config: {text_layers: 3}}}")
    merged = read_files([first, second])
    assert merged == {"ops": {"clip_checkpoint": {"config": {"captions": "x.csv", "text_layers": 3}}}}
    assert (job_of(merged), job_of({"ops": None})) == ("clip_training", "clip_gen")
    Path(list_only).write_text("- a")
    Path(broken).write_text("ops:\n  images:\n\tx: 1")
    for file, message in (
        (str(tmp_path / "none.yaml"), "does not exist"),
        (list_only, "holds no mapping"),
        (broken, r"is no YAML \(line 3, column 1: found character"),
    ):
        with pytest.raises(ClipgenError, match=message):
            read_files([file])
