"""What `start_from` names is checked before the run begins; an imported VQGAN is not forgotten."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from clipgen_core import recipes
from clipgen_core.assets import JOBS
from clipgen_core.errors import ClipgenError
from clipgen_core.generation.load import load_vqgan
from clipgen_core.preflight import Finding, findings
from clipgen_core.published.generator import import_vqgan
from clipgen_core.run_config import read_run
from clipgen_core.storage import Storage
from clipgen_core.tracking import mlflow_client
from clipgen_core.training.checkpoint import WEIGHTS, Checkpoints, Saved
from clipgen_core.training.provenance import Provenance, TrainingState
from tests.conftest import tiny_clip_config, tiny_transformer_config, tiny_vqgan_config
from tests.core.published.networks import llamagen

STAGES = {"clip": "clip_checkpoint", "vqgan": "vqgan_checkpoint", "transformer": "transformer_checkpoint"}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipes.named("quick").model_copy(
        update={
            "clip": tiny_clip_config(),
            "vqgan": tiny_vqgan_config(),
            "transformer": tiny_transformer_config(),
        }
    )
    monkeypatch.setitem(recipes.RECIPES, "tiny", made)


def found(root: Path | str, stage: str, *assets: str, **settings: Any) -> list[Finding]:
    """What is found of where the training of a stage starts from, alone or with other assets."""
    config = {
        "resources": {"storage": {"config": {"root": str(root)}}, "recipe": {"config": {"name": "tiny"}}},
        "ops": {STAGES[stage]: {"config": settings}},
    }
    run = read_run(config, assets or [STAGES[stage]], {})
    return [one for one in findings(run) if one.check in ("start_from", "VQGAN")]


@pytest.fixture(scope="session")
def clip_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = tiny_clip_config()
    provenance = Provenance(config=config.model_dump(mode="json"), captions="x", image_count=2)
    checkpoints = Checkpoints(url=str(tmp_path_factory.mktemp("clip") / "checkpoints"), provenance=provenance)
    return checkpoints.save(Saved(weights={"w": torch.zeros(1)}, state=TrainingState(step=1)))


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_no_checkpoint_of_the_stage_is_a_problem(
    stage: str, pipeline: Storage, checkpoint: str, clip_checkpoint: str, tmp_path: Path
) -> None:
    vqgan = pipeline.current("vqgan", "tests").path
    own = {"clip": clip_checkpoint, "vqgan": vqgan, "transformer": checkpoint}
    fine = found(pipeline.root, stage, start_from=own.pop(stage))
    assert [one.status for one in fine] == ["ok"] and f"{stage}.start_from is" in fine[0].text
    for wrong in ("step-8", pipeline.root, "/no/step-1", *own.values()):
        (said,) = found(pipeline.root, stage, start_from=wrong)
        assert said.status == "problem" and f"{stage}.start_from" in said.text, said
        assert "this version does not know" not in said.text
    (said,) = found(tmp_path / "empty", stage, start_from="latest")
    assert said.status == "problem" and "was trained under" in said.text


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        ("clip", {"vision_layers": 3}),
        ("vqgan", {"model": {"blocks": 2}}),
        ("transformer", {"model": {"layers": 3}}),
    ],
)
def test_weights_of_another_architecture_are_a_problem(
    stage: str, settings: dict[str, Any], pipeline: Storage, checkpoint: str, clip_checkpoint: str
) -> None:
    own = {
        "clip": clip_checkpoint,
        "vqgan": pipeline.current("vqgan", "tests").path,
        "transformer": checkpoint,
    }
    (said,) = found(pipeline.root, stage, start_from=own[stage], **settings)
    assert said.status == "problem" and "another shape than the recipe's" in said.text


def test_weights_that_are_gone_do_not_matter_to_a_training_that_goes_on(
    clip_checkpoint: str, tmp_path: Path
) -> None:
    config = tiny_clip_config().model_copy(update={"start_from": "/gone/step-1"})
    provenance = Provenance(config=config.model_dump(mode="json"), captions="x", image_count=2)
    Checkpoints(url=Storage(str(tmp_path)).checkpoints("clip", "x"), provenance=provenance).save(
        Saved(weights={"w": torch.zeros(1)}, state=TrainingState(step=1))
    )
    (said,) = found(tmp_path, "clip", start_from="/gone/step-1")
    assert said.status == "warning" and "does not matter if the training goes on" in said.text
    shutil.copytree(clip_checkpoint, tmp_path / "step-2")
    (tmp_path / "step-2" / WEIGHTS).unlink()
    (said,) = found(tmp_path, "clip", start_from=str(tmp_path / "step-2"))
    assert said.status == "problem" and "has no model.safetensors" in said.text


def test_a_transformer_needs_the_vqgan_and_the_clip_that_stay(
    pipeline: Storage, checkpoint: str, tmp_path: Path
) -> None:
    out, later = Storage(str(tmp_path)), ("token_shards", "transformer_checkpoint")
    shutil.copytree(pipeline.root, out.root, dirs_exist_ok=True)
    assert [one.status for one in found(out.root, "transformer", *later, start_from=checkpoint)] == ["ok"]
    torch.save({"model": llamagen()}, tmp_path / "w.pt")
    import_vqgan("llamagen", tmp_path / "w.pt", out, image_size=32)
    (said,) = found(out.root, "transformer", *later, start_from=checkpoint)
    assert said.status == "problem" and "was trained on codes of the VQGAN" in said.text
    anew = found(out.root, "transformer", "vqgan_checkpoint", *later, start_from=checkpoint)
    assert [(one.check, one.status) for one in anew] == [("start_from", "ok"), ("VQGAN", "warning")]


def test_a_registered_model_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = mlflow_client(uri)
    client.create_registered_model("clip-gen")
    client.create_model_version("clip-gen", source=str(tmp_path))
    for stage in ("vqgan", "transformer"):
        (fine,) = found(tmp_path, stage, start_from="models:/clip-gen/1")
        assert fine.status == "ok" and "version 1" in fine.text
        for wrong in ("models:/nope@champion", "models:/clip-gen/9"):
            (said,) = found(tmp_path, stage, start_from=wrong)
            assert said.status == "problem" and f"the registry has no {wrong}" in said.text


def test_an_imported_vqgan_is_not_replaced_without_a_word(tmp_path: Path) -> None:
    torch.save({"model": llamagen()}, tmp_path / "w.pt")
    assert found(tmp_path / "root", "vqgan") == []
    import_vqgan("llamagen", tmp_path / "w.pt", Storage(str(tmp_path / "root")), image_size=32)
    (said,) = found(tmp_path / "root", "vqgan")
    assert said.status == "warning" and "is imported (w.pt)" in said.text
    assert "without vqgan_checkpoint; to fine-tune it, set vqgan.start_from to latest" in said.text
    assert found(tmp_path / "root", "vqgan", *set(JOBS["clip_gen"]) - {"vqgan_checkpoint"}) == []


def test_a_clip_is_no_vqgan(clip_checkpoint: str) -> None:
    with pytest.raises(ClipgenError, match="is no VQGAN checkpoint: give the folder step-N of one"):
        load_vqgan(clip_checkpoint)
