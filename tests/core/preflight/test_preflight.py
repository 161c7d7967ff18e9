"""Every check on what it is there for: real files, real sockets."""

import shutil
import socket
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from clipgen_core.assets import JOBS
from clipgen_core.cli import app
from clipgen_core.preflight import Finding, findings, machine
from clipgen_core.preflight.models import available
from clipgen_core.registry.candidates import JUDGED_AGAINST
from clipgen_core.registry.champions import Registry
from clipgen_core.run_config import read_run
from clipgen_core.stages import images
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker, mlflow_client
from clipgen_core.training.checkpoint import Checkpoints, Saved
from clipgen_core.training.provenance import Provenance, TrainingState
from tests.conftest import free_port


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "CLIPGEN_PROMPTS", "CLIPGEN_EXECUTOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def config(tmp_path: Path, pictures: Path, clip_reference: str) -> dict[str, Any]:
    """A run config of clip_gen that nothing is wrong with."""
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("prompt\n" + "\n".join(f"disc {i}" for i in range(40)))
    return {
        "resources": {
            "storage": {"config": {"root": str(tmp_path / "root")}},
            "images": {"config": {"source": str(pictures / "pictures"), "clip": clip_reference}},
            "mlflow": {"config": {"local_folder": str(tmp_path / "mlflow")}},
        },
        "ops": {
            "evaluation_report": {"config": {"prompts": str(prompts)}},
            "vqgan_checkpoint": {"config": {"perceptual_blocks": 2}},
        },
    }


def found(config: dict[str, Any], job: str = "clip_gen") -> dict[str, Finding]:
    return {one.check: one for one in findings(read_run(config, JOBS[job], {}))}


def of(config: dict[str, Any], resource: str, **values: Any) -> dict[str, Any]:
    config["resources"].setdefault(resource, {"config": {}})["config"] |= values
    return config


def op(config: dict[str, Any], asset: str, **values: Any) -> dict[str, Any]:
    config["ops"].setdefault(asset, {"config": {}})["config"] |= values
    return config


def test_a_run_that_can_begin_has_no_problem_and_nothing_is_written(
    config: dict[str, Any], tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    said = found(config)
    assert {one.status for one in said.values()} == {"ok"}, said
    names = ["settings", "images", "prompts", "CLIP", "root", "disk", "memory", "MLflow", "model"]
    assert list(said) == names
    assert "has 72 files" in said["images"].text and "40 are scored" in said["prompts"].text
    assert sorted(tmp_path.rglob("*")) == before


def test_all_problems_are_found_in_one_go(config: dict[str, Any], tmp_path: Path) -> None:
    of(config, "images", source="/no/such/folder", clip="local-dir:/no/such/clip")
    of(config, "mlflow", model="a/b")
    op(
        config,
        "evaluation_report",
        prompts="/no/prompts.csv",
        judge="hub:ViT-B-32/typo",
        inception="/no/w.pth",
    )
    op(config, "vqgan_checkpoint", train={"seed": -1})
    said = found(config)
    problems = {name for name, one in said.items() if one.status == "problem"}
    assert problems == {"settings", "images", "prompts", "CLIP", "judge", "weights", "model"}
    assert "open_clip has openai, laion" in said["judge"].text


@pytest.mark.parametrize(
    ("check", "asset", "values", "status", "text"),
    [
        (
            "weights",
            "vqgan_checkpoint",
            {"lpips_weights": "/no/vgg.pth"},
            "problem",
            "vqgan.lpips_weights is /no/vgg.pth",
        ),
        ("reference", "evaluation_report", {"reference": "/no/held"}, "problem", "/no/held does not exist"),
        (
            "processes",
            "vqgan_checkpoint",
            {"processes": 7},
            "problem",
            "not divisible by 7 processes: change one",
        ),
        (
            "processes",
            "vqgan_checkpoint",
            {"processes": 4, "min_processes": 2, "workers_on": "ray", "train": {"batch_size": 16}},
            "problem",
            "vqgan_checkpoint: batch_size 16 is not divisible by 3 processes",
        ),
        (
            "processes",
            "vqgan_checkpoint",
            {"processes": 4, "min_processes": 2},
            "problem",
            "min_processes is 2: set it to at most 4, which processes is, and workers_on to ray",
        ),
        ("processes", "vqgan_checkpoint", {"processes": 2}, "ok", "2 for vqgan_checkpoint"),
        (
            "CLIP",
            "vqgan_checkpoint",
            {"perceptual_blocks": 3},
            "problem",
            "has 2 blocks, fewer than vqgan.perc",
        ),
        (
            "prompts",
            "evaluation_report",
            {"scored": 20},
            "problem",
            "enough_prompts: raise evaluation.scored, which is 20, or lower evaluation.thresholds.min",
        ),
        (
            "prompts",
            "evaluation_report",
            {"thresholds": {"min_prompts": 50}},
            "problem",
            "enough_prompts: add prompts, or lower",
        ),
        (
            "prompts",
            "evaluation_report",
            {"scored": 30, "thresholds": {"min_prompts": 90}},
            "problem",
            "enough_prompts: add prompts and raise evaluation.scored, which is 30, or lower",
        ),
        (
            "texts",
            "transformer_checkpoint",
            {"texts": "/no.txt"},
            "problem",
            "texts file /no.txt does not exist",
        ),
        ("images", "vqgan_checkpoint", {"train": {"batch_size": 512}}, "warning", "fewer than one batch"),
        ("images", "raw_images", {"min_side": 4096}, "problem", "none of the 8 images tried"),
        (
            "memory",
            "transformer_checkpoint",
            {"model": {"width": 65536, "heads": 512}},
            "problem",
            "choose a smaller recipe",
        ),
        (
            "disk",
            "transformer_checkpoint",
            {"model": {"width": 65536, "heads": 512}},
            "problem",
            "make room, or choose",
        ),
        (
            "Ray",
            "token_shards",
            {"compute": {"where": "ray"}},
            "warning",
            "token_shards would use Ray on this",
        ),
        ("Ray", "vqgan_checkpoint", {"workers_on": "ray"}, "warning", "vqgan_checkpoint would use Ray on"),
    ],
)
def test_what_a_setting_needs(
    config: dict[str, Any], check: str, asset: str, values: dict[str, Any], status: str, text: str
) -> None:
    finding = found(op(config, asset, **values))[check]
    assert finding.status == status and text in finding.text, finding


def test_too_few_prompts_stop_a_training_that_is_to_be_promoted_only(config: dict[str, Any]) -> None:
    op(config, "evaluation_report", scored=20)
    del config["ops"]["vqgan_checkpoint"]
    assert [found(config, job)["prompts"].status for job in ("clip_gen", "evaluation")] == [
        "problem",
        "warning",
    ]


def test_what_a_misspelt_asset_configures_is_not_checked(config: dict[str, Any]) -> None:
    config["ops"]["evaluation_reports"] = config["ops"].pop("evaluation_report")
    said = found(config)
    assert "did you mean 'evaluation_report'" in said["settings"].text
    assert said["prompts"].text == "not checked: correct the name of evaluation_report first"
    assert said["images"].status == "ok" and "start_from" not in said


def test_a_source_without_a_usable_image(config: dict[str, Any], tmp_path: Path) -> None:
    empty, texts = tmp_path / "empty", tmp_path / "texts"
    empty.mkdir(), texts.mkdir()
    (texts / "a.txt").write_text("a disc")
    assert "is empty: put images into it" in found(of(config, "images", source=str(empty)))["images"].text
    assert "no image was found in" in found(of(config, "images", source=str(texts)))["images"].text
    assert "CLIPGEN_SOURCE" in found(of(config, "images", source=""))["images"].text


def test_a_source_with_some_unusable_files(config: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures / "pictures" / "disc", tmp_path / "in" / "disc")
    (tmp_path / "in" / "disc" / ".hidden").write_text("")
    (tmp_path / "in" / "disc" / "a.txt").write_text("a disc")
    given = of(config, "images", source=str(tmp_path / "in"))
    assert found(given)["images"].status == "ok"  # a text is no image that cannot be used
    (tmp_path / "in" / "disc" / "a.png").write_text("a disc")
    finding = found(given)["images"]
    assert finding.status == "warning" and "has 26 files, and 1 of the 8 tried cannot" in finding.text


def test_a_source_that_cannot_be_referenced(config: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "0.tar.gz", "w:gz") as archive:
        archive.add(pictures / "pictures", "pictures")
    given = of(config, "images", source=str(tmp_path / "in"))
    assert found(given)["images"].status != "problem"
    finding = found(op(given, "raw_images", store="references"))["images"]
    assert finding.status == "problem"
    assert "0.tar.gz" in finding.text and "cannot be referenced" in finding.text


def test_conditions_on_the_images(config: dict[str, Any]) -> None:
    config = op(config, "token_shards", where="score > 5")
    assert found(config)["where"].status == "warning"
    assert "vqgan.where is None and tokens.where is 'score > 5'" in found(config)["where"].text
    config = op(config, "vqgan_checkpoint", where="score > 5")
    assert found(config)["where"].status == "ok"
    config = op(config, "vqgan_checkpoint", where="aesthetic > 5")
    assert found(config)["where"].status == "problem"
    assert "No field named aesthetic" in found(config)["where"].text
    config = op(config, "token_shards", where="aesthetic > 5")
    assert found(op(config, "raw_images", columns=["aesthetic:number"]))["where"].status == "ok"


def test_a_condition_that_selects_no_image_that_was_read(
    config: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    out = Storage(str(tmp_path / "root"))
    images.run(images.Config(), source=str(pictures / "pictures"), out=out, tracker=NullTracker())
    for asset in ("vqgan_checkpoint", "token_shards"):
        config = op(config, asset, where="folder = 'discs'")
    finding = found(config)["where"]
    assert finding.status == "problem" and "vqgan.where" in finding.text
    assert "selects 0 of 72 images" in finding.text
    op(config, "raw_images", columns=["aesthetic:number"])  # a new column, which the condition does not name
    assert found(config)["where"].status == "problem"
    config["ops"].pop("raw_images")
    assert found(op(config, "raw_images", read_again=True))["where"].status == "ok"
    config["ops"].pop("raw_images")
    for asset in ("vqgan_checkpoint", "token_shards"):
        config = op(config, asset, where="folder = 'disc'")
    assert found(config)["where"].status == "ok"
    for asset in ("vqgan_checkpoint", "token_shards"):
        config = op(config, asset, where="aesthetic > 5")
    assert found(op(config, "raw_images", columns=["aesthetic:number"]))["where"].status == "ok"


def test_captions_whose_images_are_missing(config: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    config["ops"] = {"clip_checkpoint": {"config": {"captions": str(pictures / "captions.csv")}}}
    said = found(config, "clip_training")
    assert "has only 24 different captions for 72 images" in said.pop("captions").text
    assert {one.status for one in said.values()} == {"ok"}, said
    captions = tmp_path / "captions.csv"
    captions.write_text("file,caption\na.png,a disc\nb.png,a square\n")
    op(config, "clip_checkpoint", captions=str(captions))
    assert "2 of 2 files that captions file" in found(config, "clip_training")["captions"].text


def test_a_clip_that_is_not_trained_yet(config: dict[str, Any], tmp_path: Path, clip_reference: str) -> None:
    of(config, "images", clip="trained")
    assert "there is no clip_checkpoint under" in found(config)["CLIP"].text
    Storage(str(tmp_path / "root")).publish_current("clip", clip_reference, "x")
    assert found(config)["CLIP"].status == "ok"
    op(config, "evaluation_report", judge=f"trained:{tmp_path}/root")
    assert found(config)["judge"] == Finding("judge", "ok", clip_reference)


def test_a_public_clip_needs_the_cache_or_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for reference in ("hf-hub:someone/some-clip", "hub:ViT-B-32/typo", "ViT-B-32"):
        with pytest.raises(Exception, match="CLIP|open_clip has"):
            available(reference)


def test_places_that_cannot_be_written_to(config: dict[str, Any], tmp_path: Path) -> None:
    of(config, "mlflow", local_folder="/proc/mlflow")
    of(config, "storage", root="/proc/root")
    said = found(config)
    assert "the root /proc/root cannot be written to" in said["root"].text
    assert "MLflow at sqlite:////proc/mlflow/mlflow.db cannot be written to" in said["MLflow"].text
    assert found(of(config, "storage", root="bogus://x"))["root"].status == "problem"


def test_a_store_of_objects_is_written_to_and_cleaned(config: dict[str, Any]) -> None:
    import fsspec

    assert found(of(config, "storage", root="memory://bucket/root"))["root"].status == "ok"
    store = fsspec.filesystem("memory")
    assert not [one for one in store.find("/bucket") if "probe" in one]


def test_servers_that_do_not_answer(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    of(config, "mlflow", tracking_uri=f"http://user:secret@127.0.0.1:{free_port()}")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    said = found(op(config, "token_shards", compute={"where": "ray"}))
    assert said["model"].status == "ok"
    uri = config["resources"]["mlflow"]["config"]["tracking_uri"].replace("user:secret@", "")
    assert said["MLflow"].text == (
        f"MLflow at {uri} does not answer (connection refused): start it, or set MLFLOW_TRACKING_URI"
    )
    assert "secret" not in str(said)
    assert "does not answer" in said["Ray"].text and said["Ray"].status == "problem"
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        assert found(config)["Ray"].status == "ok"


def test_the_command_says_a_line_a_check_and_ends_with_exit_code_two(
    config: dict[str, Any], tmp_path: Path
) -> None:
    import yaml

    file, more = tmp_path / "run.yaml", tmp_path / "more.yaml"
    file.write_text(yaml.safe_dump(config))
    fine = CliRunner().invoke(app, ["check", str(file)])
    assert fine.exit_code == 0, fine.output
    assert [line.split()[0] for line in fine.output.splitlines()] == ["ok"] * 9
    more.write_text("ops: {vqgan_checkpoint: {config: {train: {step: 3}}}}")
    bad = CliRunner().invoke(app, ["check", str(file), str(more)])
    assert bad.exit_code == 2
    assert "problem  settings   ops.vqgan_checkpoint.config has no 'train.step': did you mean" in bad.output
    assert bad.output.splitlines()[-1] == "1 problem: clip_gen would fail"
    for args, message in (
        ([str(file), "-j", "clip_gn"], "did you mean 'clip_gen'"),
        (["no.yaml"], "no.yaml does not"),
    ):
        refused = CliRunner().invoke(app, ["check", *args])
        assert refused.exit_code == 2 and message in refused.output


def test_folders_in_place_of_files_are_one_sentence(config: dict[str, Any], tmp_path: Path) -> None:
    op(config, "transformer_checkpoint", texts=str(tmp_path))
    said = found(op(config, "evaluation_report", prompts=str(tmp_path)))
    assert said["prompts"].text == f"prompts file {tmp_path} is a folder: name a file in it"
    assert said["texts"].text == f"texts file {tmp_path} is a folder: name a file in it"
    config["ops"] = {"clip_checkpoint": {"config": {"captions": str(tmp_path)}}}
    said = found(config, "clip_training")
    assert said["captions"].text == f"captions file {tmp_path} is a folder: name a file in it"


def test_captions_that_are_alike(config: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").symlink_to(pictures / "pictures")
    files = [row.partition(",")[0] for row in (pictures / "captions.csv").read_text().splitlines()[1:]]
    captions = tmp_path / "captions.csv"
    config["ops"] = {"clip_checkpoint": {"config": {"captions": str(captions)}}}
    for kinds, status, text in (
        (1, "problem", "all captions in"),
        (2, "warning", "only 2 different captions for 72 images"),
    ):
        rows = [f"{file},a {['square', 'disc'][i % kinds]}" for i, file in enumerate(files)]
        captions.write_text("\n".join(["file,caption", *rows]))
        said = found(config, "clip_training")["captions"]
        assert said.status == status and text in said.text, said


def test_files_in_place_of_folders(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    of(config, "storage", root=str(tmp_path / "file"))
    said = found(of(config, "mlflow", local_folder=str(tmp_path / "file" / "mlflow")))
    assert said["root"].status == said["MLflow"].status == "problem"
    assert "file is a file, so" in said["root"].text and "storage.config.root" in said["root"].text
    assert "mlflow cannot be a folder: choose another resources.mlflow.config.local" in said["MLflow"].text


def test_weights_and_references_that_are_something_else(
    config: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    picture, empty, held = next(pictures.rglob("*.png")), tmp_path / "empty", tmp_path / "held"
    empty.mkdir(), held.mkdir()
    op(config, "vqgan_checkpoint", lpips_weights=str(picture))
    said = found(op(config, "evaluation_report", reference=str(empty)))
    assert "which is no file of PyTorch weights: download torchvision's" in said["weights"].text
    assert said["reference"].text.endswith("empty, which holds no image: put some into it")
    op(config, "vqgan_checkpoint", lpips_weights=None)
    op(config, "evaluation_report", inception=str(tmp_path), reference=str(held))
    shutil.copy(picture, held / "a.png")
    (held / "labels.txt").write_text("a disc")
    said = found(config)
    assert "evaluation.inception is" in said["weights"].text and said["reference"].status == "ok"
    (held / "b.png").write_text("broken")
    assert "b.png cannot be used" in found(config)["reference"].text


def test_a_store_without_credentials_is_said_once_and_soon(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    of(config, "storage", root="s3://clipgen-no-such-bucket/root")
    begin = time.monotonic()
    problems = [one for one in found(config).values() if one.status == "problem"]
    assert len(problems) == 1 and "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in problems[0].text
    assert time.monotonic() - begin < 10


def test_one_invalid_setting_leads_to_no_other_problem(config: dict[str, Any]) -> None:
    op(config, "vqgan_checkpoint", perceptual_blocks=1, train={"steps": 20.5})
    assert [name for name, one in found(config).items() if one.status != "ok"] == ["settings"]


def test_the_disk_needs_no_room_for_what_is_stored(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = read_run(config, ["vqgan_checkpoint"], {})
    ((_, parameters),) = machine.parameter_counts(run)
    needed = run.recipe.vqgan.train.checkpoint_bytes(parameters)
    full = shutil.disk_usage(tmp_path)._replace(free=needed // 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    assert machine_said(config) == "problem"
    provenance = Provenance(config=run.recipe.vqgan.model_dump(mode="json"), images_digest="x")
    saved = Saved(weights={"w": torch.zeros(needed // 4)}, state=TrainingState(step=1))
    Checkpoints(url=Storage(run.root).checkpoints("vqgan", "x"), provenance=provenance).save(saved)
    assert machine_said(config) == "ok"
    op(config, "vqgan_checkpoint", train={"seed": 7})  # a new training
    assert machine_said(config) == "problem"


def test_the_disk_needs_no_room_for_images_that_are_referenced(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    assert machine_said(config, "raw_images") == "problem"
    assert machine_said(op(config, "raw_images", store="references"), "raw_images") == "ok"


def machine_said(config: dict[str, Any], asset: str = "vqgan_checkpoint") -> str:
    said = {one.check: one.status for one in findings(read_run(config, [asset], {}))}
    return said["disk"]


def test_every_job_can_be_checked(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"resources: {{storage: {{config: {{root: {tmp_path}/root}}}}}}")
    said = CliRunner().invoke(app, ["check", str(file), "--job", "upkeep"])
    assert said.exit_code == 0 and "MLflow" not in said.output, said.output


def test_a_model_whose_champion_another_root_chose_is_a_problem(config: dict[str, Any]) -> None:
    assert found(config)["model"].status == "ok"
    client = mlflow_client(read_run(config, JOBS["clip_gen"], {}).mlflow_uri)
    client.create_registered_model("clip-gen")
    client.create_model_version("clip-gen", source="file:///nothing")
    assert found(config)["model"].status == "ok"
    client.set_registered_model_alias("clip-gen", "champion", "1")
    said = found(config)["model"]
    assert said.status == "problem" and "is version 1, which another root promoted" in said.text
    assert found(of(config, "mlflow", model="mine"))["model"].status == "ok"


def test_a_champion_that_mlflow_does_not_have_is_a_problem(config: dict[str, Any]) -> None:
    run = read_run(config, JOBS["clip_gen"], {})
    client = mlflow_client(run.mlflow_uri)
    client.create_registered_model("clip-gen")
    client.create_model_version("clip-gen", source="file:///nothing")
    client.set_model_version_tag("clip-gen", "1", JUDGED_AGAINST, "none")
    Registry(client, Storage(run.root)).promote("1")
    assert found(config)["model"].status == "ok"
    client.delete_model_version("clip-gen", "1")
    said = found(config)["model"]
    assert said.status == "problem" and "is no longer in MLflow: `clipgen champions --repair`" in said.text
    Path(run.mlflow_uri.removeprefix("sqlite:///")).unlink()
    said = found(config)["model"]
    assert said.status == "problem" and "of clip-gen as champion, but there is no MLflow" in said.text
