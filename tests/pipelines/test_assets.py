"""Every asset materialised by Dagster on tiny real pictures, with real Lance, MLflow and CLIP."""

import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import mlflow
import pytest

from clipgen_core import recipes
from clipgen_core.settings.evaluation import Thresholds
from clipgen_core.stages import duplicates, embeddings, evaluation, images, tokens
from clipgen_core.storage import Storage
from clipgen_core.tracking import mlflow_client
from pipelines.definitions import defs
from tests.conftest import tiny_clip_config, tiny_transformer_config, tiny_vqgan_config

TINY = recipes.Recipe(
    clip=tiny_clip_config(4),
    images=images.Config(),
    embeddings=embeddings.Config(),
    duplicates=duplicates.Config(),
    vqgan=tiny_vqgan_config(4),
    tokens=tokens.Config(views=2),
    transformer=tiny_transformer_config(4),
    evaluation=evaluation.Config(
        shown=("a red disc",),
        images_shown=1,
        scored=4,
        candidates=1,
        reconstructions=2,
        thresholds=Thresholds(min_prompts=4, min_above_shuffled=-2),
    ),
)


FIGURES = {  # of each stage, in MLflow
    "raw_images": {"images", "images_added", "reject_share", "images_per_second"},
    "clip_embeddings": {"embeddings", "embedded", "images_per_second"},
    "near_duplicates": {"looked_up", "near_duplicate_pairs", "redundant"},
    "vqgan_checkpoint": {"loss", "psnr"},
    "token_shards": {"rows", "codebook_usage", "codebook_perplexity", "images_per_second"},
    "transformer_checkpoint": {"loss", "validation_loss"},
    "evaluation_report": {"train/generated/clip_score"},
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(recipes.RECIPES, "tiny", TINY)


def config(
    root: Path, pictures: Path, source: Path | None = None, clip: str = "trained", **ops: dict[str, Any]
) -> dict[str, Any]:
    given: dict[str, dict[str, Any]] = {
        "evaluation_report": {"prompts": str(pictures / "prompts.csv")},
    }
    given |= ops
    return {
        "resources": {
            "storage": {"config": {"root": str(root / "root")}},
            "images": {"config": {"source": str(source or pictures / "pictures"), "clip": clip}},
            "recipe": {"config": {"name": "tiny"}},
            "mlflow": {"config": {"local_folder": str(root / "mlflow")}},
        },
        "ops": {name: {"config": values} for name, values in given.items()},
    }


def execute(job: str, run_config: dict[str, Any], **options: Any) -> dg.ExecuteInProcessResult:
    return defs().resolve_job_def(job).execute_in_process(run_config=run_config, **options)


@pytest.mark.slow
def test_the_whole_pipeline_with_its_lineage(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPGEN_DAGSTER_PAGE", "https://dagster.example/")
    captions = {"clip_checkpoint": {"captions": str(pictures / "captions.csv")}}
    clip_config = config(tmp_path, pictures, **captions)
    clip_config["ops"] = {"clip_checkpoint": clip_config["ops"]["clip_checkpoint"]}
    with dg.DagsterInstance.ephemeral() as instance:
        assert execute("clip_training", clip_config, instance=instance).success
        result = execute("clip_gen", config(tmp_path, pictures), instance=instance)
        run = instance.get_run_by_id(result.run_id)
        tags = {name: run.tags[name] for name in run.tags if name.startswith("clipgen/")} if run else {}
    assert result.success
    made = {
        event.asset_key.to_user_string(): event.step_materialization_data.materialization
        for event in result.get_asset_materialization_events()
        if event.asset_key
    }
    assert len(made) == 8
    for name in ("raw_images", "clip_embeddings", "near_duplicates", "token_shards"):
        assert made[name].metadata["dagster/column_schema"].value.columns, name
    figures = made["evaluation_report"].metadata["figures"].value
    scores = {str(row.data["figure"]): row.data["value"] for row in figures.records}
    assert scores["train/generated/clip_score"]
    assert made["evaluation_report"].metadata["train/generated/clip_score"].value
    for name, previews in {
        "raw_images": ["preview"],
        "vqgan_checkpoint": ["loss_curve", "reconstructions", "psnr_curve"],
        "transformer_checkpoint": ["loss_curve", "samples", "validation_curve"],
        "evaluation_report": ["grid"],
    }.items():
        for preview in previews:
            value = made[name].metadata[preview].value
            assert str(value).startswith("![](data:image/"), (name, preview)
            assert len(str(value)) < 40_000, (name, preview, len(str(value)))
    assert made["raw_images"].metadata["dagster/row_count"].value == 72
    assert {made[name].metadata["dagster/uri"].value for name in ("raw_images",)} == {
        f"{tmp_path}/root/images.lance"
    }
    schema = made["raw_images"].metadata["dagster/column_schema"].value
    assert {"id", "uri", "folder", "image"} <= {one.name for one in schema.columns}
    for name in ("vqgan_checkpoint", "transformer_checkpoint"):
        assert isinstance(made[name].metadata["loss"].value, float)
    assert tags == {"clipgen/recipe": "tiny", "clipgen/clip": "trained"}
    assert made["token_shards"].metadata["dagster/row_count"].value == 144
    checks = {e.check_name: e.passed for e in result.get_asset_check_evaluations()}
    assert checks["reject_share"] and checks["one_row_per_image"]
    assert {"codebook_usage", "better_than_uniform", "enough_prompts", "not_memorised"} <= checks.keys()

    severities = {e.check_name: e.severity.value for e in result.get_asset_check_evaluations()}
    assert severities["codebook_usage"] == severities["better_than_uniform"] == "WARN"
    assert severities["reject_share"] == severities["enough_prompts"] == "ERROR"
    judged = {e.check_name: e.metadata for e in result.get_asset_check_evaluations()}
    assert judged["enough_prompts"]["min_prompts"].value == 4

    client = mlflow_client(f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'clip-gen'")
    grouped = f"tags.`clipgen.group` = '{result.run_id}'"
    (parent,) = client.search_runs([experiment.experiment_id], grouped)
    assert (parent.info.run_name, parent.info.status) == ("clip_gen", "FINISHED")
    assert parent.data.tags["clipgen/recipe"] == "tiny"
    children = client.search_runs(
        [experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    assert {one.info.run_name for one in children} == set(FIGURES)
    assert "/runs/" + result.run_id in children[0].data.tags["mlflow.note.content"]
    run = client.get_run(made["transformer_checkpoint"].metadata["mlflow_run"].value)
    assert run.data.tags["dagster.run_id"] == result.run_id
    assert run.data.tags["upstream.images"] == made["raw_images"].metadata["digest"].value
    assert run.data.tags["upstream.vqgan"] == made["vqgan_checkpoint"].metadata["digest"].value
    for name, figures in FIGURES.items():
        run = client.get_run(made[name].metadata["mlflow_run"].value)
        assert (run.info.run_name, run.info.status) == (name, "FINISHED")
        assert figures <= run.data.metrics.keys(), name
        assert [one for one in run.data.params if one.startswith("config.")], name
        assert "dagster.partition" not in run.data.tags
    shards = client.get_run(made["token_shards"].metadata["mlflow_run"].value).data
    assert shards.metrics["codebook_usage"] == made["token_shards"].metadata["codebook_usage"].value
    assert shards.tags["upstream.images"] == made["raw_images"].metadata["digest"].value
    version = client.get_model_version_by_alias("clip-gen", "candidate")
    assert str(version.version) == made["evaluation_report"].metadata["model_version"].value
    assert Path(str(made["evaluation_report"].metadata["report"].value)).is_file()

    assert made["champion"].metadata["version"].value == "1"
    assert str(client.get_model_version_by_alias("clip-gen", "champion").version) == "1"

    judge = {"prompts": str(pictures / "prompts.csv"), "judge": f"trained:{tmp_path}/root"}
    again = config(tmp_path, pictures, evaluation_report=judge)
    again["ops"] = {"evaluation_report": again["ops"]["evaluation_report"]}
    with dg.DagsterInstance.ephemeral() as instance:
        result = execute("evaluation", again, instance=instance)
    (event,) = result.get_asset_materialization_events()
    page = Path(str(event.step_materialization_data.materialization.metadata["report"].value)).read_text()
    assert "the CLIP that conditions both models, which flatters both" in page
    assert "compared with models:/clip-gen/1 on the same prompts" in page
    (version,) = client.search_model_versions("name = 'clip-gen'")  # judged again, not registered again
    again_run = event.step_materialization_data.materialization.metadata["mlflow_run"].value
    tags = client.get_model_version("clip-gen", str(version.version)).tags
    assert tags["report"] == f"runs:/{again_run}/report.html" and tags["judged_against"] == "1"
    assert tags["judge"].startswith("local-dir:")


@pytest.mark.slow
def test_a_failed_check_keeps_the_champion(
    pictures: Path, pipeline: Storage, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Storage(str(tmp_path / "root"))
    root.publish_current("transformer", checkpoint, "tests")
    shutil.copytree(pipeline.images, root.images)
    selection = [dg.AssetKey("evaluation_report"), dg.AssetKey("champion")]

    def evaluate(**settings: Any) -> dg.ExecuteInProcessResult:
        given = {"prompts": str(pictures / "prompts.csv"), **settings}
        asked = config(tmp_path, pictures, evaluation_report=given)
        return execute("clip_gen", asked, asset_selection=selection, raise_on_error=False)

    failed = evaluate(thresholds={"min_prompts": 1000})
    assert not failed.success
    (bad,) = [e for e in failed.get_asset_check_evaluations() if not e.passed]
    assert (
        bad.check_name == "enough_prompts"
        and bad.description == "4 prompts were scored, at least 1000 are needed"
    )
    client = mlflow_client(f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    assert client.get_registered_model("clip-gen").aliases == {"candidate": 1}
    tags = client.get_model_version("clip-gen", "1").tags
    assert tags["check.enough_prompts"] == "failed: 4 prompts were scored, at least 1000 are needed"
    assert evaluate().success
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/other.db")  # of this process; the asset has its own
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert evaluate().success  # the same again: no worse than the champion
    assert client.get_registered_model("clip-gen").aliases == {"candidate": 1, "champion": 1}


def test_too_many_rejects_stop_what_comes_after(pictures: Path, clip_reference: str, tmp_path: Path) -> None:
    source = tmp_path / "mixed"
    source.mkdir()
    for number, file in enumerate(sorted((pictures / "pictures" / "disc").iterdir())[:3]):
        (source / f"{number}.png").write_bytes(file.read_bytes())
    (source / "broken.png").write_bytes(b"broken")
    asked = config(
        tmp_path,
        pictures,
        source,
        clip_reference,
        raw_images={"max_reject_share": 0.2},
    )
    selection = [dg.AssetKey("raw_images"), dg.AssetKey("clip_embeddings")]
    result = execute("clip_gen", asked, asset_selection=selection, raise_on_error=False)
    assert not result.success
    (check,) = result.get_asset_check_evaluations()
    assert not check.passed and check.metadata["share"].value == 0.25
    assert not (tmp_path / "root" / "embeddings").exists()
    (event,) = result.get_asset_materialization_events()
    run_id = event.step_materialization_data.materialization.metadata["mlflow_run"].value
    metrics = mlflow_client(f"sqlite:///{tmp_path}/mlflow/mlflow.db").get_run(run_id).data.metrics
    assert {
        "images": 3,
        "images_found": 4,
        "images_added": 3,
        "reject_share": 0.25,
    }.items() <= metrics.items()
    assert metrics["rejects/not_an_image"] == 1
    del asked["ops"]["evaluation_report"]
    asked["ops"]["raw_images"]["config"]["max_reject_share"] = 0.3
    assert execute("clip_gen", asked, asset_selection=selection).success


def test_a_stage_without_its_input_says_what_to_materialise(pictures: Path, tmp_path: Path) -> None:
    selection = [dg.AssetKey("transformer_checkpoint")]
    result = execute("clip_gen", config(tmp_path, pictures), asset_selection=selection, raise_on_error=False)
    failures = [e.step_failure_data.error for e in result.all_events if e.is_step_failure]
    assert "materialise token_shards" in str(failures[0])
    assert not (Path(Storage(str(tmp_path / "root")).root) / "checkpoints").exists()


@pytest.mark.slow
def test_several_processes_log_to_the_assets_own_run(
    pictures: Path, pipeline: Storage, tmp_path: Path
) -> None:
    shards = pipeline.current("tokens", "tests")
    Storage(str(tmp_path / "root")).publish_current("tokens", shards.path, shards.digest)
    training = {
        "processes": 2,
        "model": {"width": 32, "layers": 1, "heads": 2},
        "train": {"steps": 3, "batch_size": 4, "optimizer": "adamw", "log_every": 1},
    }
    asked = config(tmp_path, pictures, transformer_checkpoint=training)
    asked["resources"]["recipe"] = {"config": {"name": "demo"}}
    asked["ops"] = {"transformer_checkpoint": asked["ops"]["transformer_checkpoint"]}
    result = execute("clip_gen", asked, asset_selection=[dg.AssetKey("transformer_checkpoint")])
    (event,) = result.get_asset_materialization_events()
    run_id = event.step_materialization_data.materialization.metadata["mlflow_run"].value
    client = mlflow_client(f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    assert [point.step for point in client.get_metric_history(run_id, "loss")] == [1, 2, 3]
    training["start_from"] = "latest"
    result = execute("clip_gen", asked, asset_selection=[dg.AssetKey("transformer_checkpoint")])
    (warm,) = result.get_asset_materialization_events()
    first, second = (one.step_materialization_data.materialization.metadata for one in (event, warm))
    assert second["started_from"].value == first["path"].value != second["path"].value
    before, after = (one["validation_loss"].value for one in (first, second))
    assert second["validation_loss_before"].value == pytest.approx(before, abs=1e-3)
    assert after < before
