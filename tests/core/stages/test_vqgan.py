import shutil
from typing import Any

import pytest
import torch

from clipgen_core.data.images import ImageTable
from clipgen_core.data.order import Share
from clipgen_core.errors import ClipgenError
from clipgen_core.generation.load import load_vqgan
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.stages import vqgan
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker
from clipgen_core.training import loop
from clipgen_core.training.checkpoint import Checkpoint, Checkpoints, Saved
from clipgen_core.training.provenance import ImportedFile, Provenance, TrainingState
from clipgen_core.training.task import train_step
from tests.conftest import tiny_vqgan_config


def train(config: vqgan.Config, pipeline: Storage, clip: str, out: Storage) -> vqgan.Result:
    return vqgan.run(config, images=pipeline.images, clip=clip, out=out, tracker=NullTracker())


def test_training_makes_reconstructions_better(
    pipeline: Storage, clip_reference: str, storage: Storage
) -> None:
    short = train(tiny_vqgan_config(2), pipeline, clip_reference, storage)
    long = train(tiny_vqgan_config(60), pipeline, clip_reference, storage)
    assert long.fitted.metrics["psnr"] > short.fitted.metrics["psnr"] + 1
    assert long.fitted.metrics["codebook_usage"] > 0.3
    assert long.fitted.images["reconstructions"].height == 2 * 32 + 2


def test_the_discriminator_starts_at_its_share_of_training(
    pipeline: Storage, clip_reference: str, storage: Storage
) -> None:
    config = tiny_vqgan_config(8, log_every=1)
    fitted = train(config, pipeline, clip_reference, storage).fitted
    judged = [row["step"] for row in fitted.history if "discriminator" in row]
    assert judged == [5, 6, 7, 8]
    assert "discriminator" in Checkpoint(fitted.checkpoint).resume()["extras"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputing_blocks_changes_no_loss_and_no_weight(
    precision: str, pipeline: Storage, clip_reference: str
) -> None:
    trained = []
    for recompute in (False, True):
        config = tiny_vqgan_config(4, precision=precision, micro_batch=4)
        config = config.model_copy(update={"recompute": recompute, "gradient_penalty": 1.0})
        task = vqgan.VqganTask(config, ImageTable(pipeline.images), ClipEncoder(clip_reference))
        optimizers, curve = task.optimizers(), []
        for step in range(4):
            task.model.train()
            passes = [task.batch(step, Share(i, 2)) for i in range(2)]
            metrics = train_step(task, optimizers, passes, step, config.train)
            curve.append({name: float(value) for name, value in metrics.items()})
        trained.append((curve, task.model.state_dict()))
    (curve, weights), (same_curve, same_weights) = trained
    assert "adaptive_weight" in curve[-1] and same_curve == curve
    assert all(torch.equal(value, same_weights[key]) for key, value in weights.items())


def test_the_validation_loss_is_the_same_in_parts(pipeline: Storage, clip_reference: str) -> None:
    found = []
    for micro_batch in (None, 2):
        config = tiny_vqgan_config(4, precision="fp32", micro_batch=micro_batch)
        task = vqgan.VqganTask(config, ImageTable(pipeline.images), ClipEncoder(clip_reference))
        task.model.eval()
        with torch.no_grad():
            found.append(task.validate())
    assert found[0].metrics == pytest.approx(found[1].metrics, rel=1e-4)
    assert found[0].images["reconstructions"].size == found[1].images["reconstructions"].size


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("recompute", [False, True], ids=["stored", "recomputed"])
def test_compiled_training_goes_on_when_the_discriminator_joins(
    recompute: bool, pipeline: Storage, clip_reference: str
) -> None:
    config = tiny_vqgan_config(4, precision="fp32")
    shape = config.model.model_copy(update={"channels": (32,), "decoder_blocks": 1, "attention": "middle"})
    config = config.model_copy(update={"model": shape, "perceptual": 0.0, "recompute": recompute})
    curves = []
    for compiled in (False, True):
        task = vqgan.VqganTask(config, ImageTable(pipeline.images), ClipEncoder(clip_reference))
        if compiled:
            task.model.compile()
            task.model.eval()
            with torch.no_grad():
                task.validate()  # of other batch sizes than in training
        optimizers, curve = task.optimizers(), []
        for step in range(4):
            task.model.train()
            metrics = train_step(task, optimizers, [task.batch(step)], step, config.train)
            curve.append({name: float(value) for name, value in metrics.items()})
        curves.append(curve)
    assert "adaptive_weight" in curves[1][2] and "adaptive_weight" not in curves[1][1]
    for eager, compiled_too in zip(*curves, strict=True):
        assert compiled_too == pytest.approx(eager, rel=1e-2, abs=1e-3)


def test_another_optimizer_than_adamw_is_refused() -> None:
    with pytest.raises(ClipgenError, match=r"does not train by muon: set vqgan\.train\.optimizer to adamw"):
        tiny_vqgan_config(4, optimizer="muon")


@pytest.mark.parametrize("imported", [True, False], ids=["imported", "own"])
def test_fine_tuning_replaces_no_code_of_an_imported_codebook_also_when_it_is_resumed(
    imported: bool, pipeline: Storage, clip_reference: str, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = train(tiny_vqgan_config(2), pipeline, clip_reference, storage)
    record: dict[str, Any] = {"config": tiny_vqgan_config(1).model_dump(mode="json")}
    if imported:
        record["imported"] = ImportedFile(kind="taming", file="last.ckpt", sha256="0")
    weights, state = Checkpoint(own.checkpoint).weights(), TrainingState(step=0)
    there = Checkpoints(url=storage.checkpoints("vqgan", "start"), provenance=Provenance(**record))
    config = tiny_vqgan_config(6, checkpoint_every=2, log_every=1)
    quantizer = config.model.quantizer.model_copy(update={"replace_below": 0.99})
    shape = config.model.model_copy(update={"quantizer": quantizer})
    start = there.save(Saved(weights=weights, state=state))
    config = config.model_copy(update={"model": shape, "start_from": start})
    whole = loop._Run.train

    def killed(self: Any, step: int, batches: Any) -> None:
        if step == 3:
            raise SystemExit
        whole(self, step, batches)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(loop._Run, "train", killed)
        train(config, pipeline, clip_reference, storage)
    history = train(config, pipeline, clip_reference, storage).fitted.history
    replaced = [row["codes_replaced"] for row in history if "codes_replaced" in row]
    assert len(replaced) == 6
    assert (replaced == [0.0] * 6) == imported


def test_the_checkpoint_says_what_it_was_made_from_and_loads(
    pipeline: Storage, clip_reference: str, storage: Storage
) -> None:
    result = train(tiny_vqgan_config(2), pipeline, clip_reference, storage)
    made_from = Checkpoint(result.checkpoint).provenance
    assert made_from.clip == clip_reference
    assert len(made_from.images_digest or "") == 16
    assert storage.current("vqgan", "tests").path == result.checkpoint
    model = load_vqgan(result.checkpoint)
    codes = model.encode(torch.zeros(1, 3, 32, 32))
    assert codes.shape == (1, 4, 4)


def test_regularised_discriminators_train_too(
    pipeline: Storage, clip_reference: str, storage: Storage
) -> None:
    config = tiny_vqgan_config(6, log_every=1).model_copy(
        update={"lecam": 0.1, "gradient_penalty": 0.5, "adversarial_from": 0.0, "perceptual_blocks": 1}
    )
    result = train(config, pipeline, clip_reference, storage)
    anchors = Checkpoint(result.fitted.checkpoint).resume()["extras"]["discriminator"]["anchors"]
    assert (anchors != 0).all()
    assert {"psnr", "ssim", "rfid_clip", "codebook_usage"} <= result.fitted.metrics.keys()


def test_fine_tuning_starts_from_the_weights_given(
    pipeline: Storage, clip_reference: str, storage: Storage
) -> None:
    first = train(tiny_vqgan_config(60), pipeline, clip_reference, storage)
    tuned = tiny_vqgan_config(1)
    gentle = tuned.train.model_copy(update={"learning_rate": 1e-6})
    tuned = tuned.model_copy(update={"start_from": first.checkpoint, "train": gentle})
    result = train(tuned, pipeline, clip_reference, storage)
    assert result.fitted.metrics["psnr"] == pytest.approx(first.fitted.metrics["psnr"], abs=0.5)
    other = tiny_vqgan_config(1)
    shape = other.model.model_copy(update={"channels": (32, 64)})
    other = other.model_copy(update={"model": shape, "start_from": first.checkpoint})
    with pytest.raises(ClipgenError, match="has another shape"):
        train(other, pipeline, clip_reference, storage)


def test_another_condition_on_the_images_begins_another_training(
    pipeline: Storage, clip_reference: str, storage: Storage
) -> None:
    def run(where: str) -> vqgan.Result:
        config = tiny_vqgan_config(1).model_copy(update={"where": where})
        return train(config, pipeline, clip_reference, storage)

    all_of_them, some = run("width >= 32"), run("id < '8'")
    assert all_of_them.images == all_of_them.images_total == some.images_total == 72 > some.images
    assert all_of_them.digest != some.digest
    assert run("width >= 32").checkpoint == all_of_them.checkpoint
    assert Checkpoint(some.checkpoint).provenance.image_count == some.images
