import os
import signal
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from clipgen_core.data.order import Share
from clipgen_core.data.tokens import TokenShards
from clipgen_core.settings.models import GapConfig
from clipgen_core.stages import transformer
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker
from clipgen_core.training.batches import condition_of
from clipgen_core.training.checkpoint import Checkpoint
from tests.conftest import PROCESSES, of_order, tiny_transformer_config


def train(config: transformer.Config, pipeline: Storage, out: Storage) -> transformer.Result:
    shards = pipeline.current("tokens", "tests").path
    return transformer.run(config, tokens=shards, out=out, tracker=NullTracker())


def test_training_lowers_the_held_out_loss(pipeline: Storage, storage: Storage) -> None:
    config = tiny_transformer_config(150)
    fitted = train(config.model_copy(update={"corrupt": 0.0}), pipeline, storage).fitted
    losses = [row["loss"] for row in fitted.history if "loss" in row]
    assert np.mean(losses[-3:]) < 0.85 * losses[0]
    assert fitted.metrics["validation_loss"] < np.log(16)
    assert fitted.images["samples"].height == 2 * 32 + 2


@pytest.mark.parametrize("order", ["annealed", "any"])
def test_other_orders_learn_and_generate(order: str, pipeline: Storage, storage: Storage) -> None:
    config = tiny_transformer_config(150).model_copy(update={"corrupt": 0.0, "embedding_weight": 0.1})
    fitted = train(of_order(order, config), pipeline, storage).fitted
    losses = [row["code_loss"] for row in fitted.history if "code_loss" in row]
    assert np.mean(losses[-3:]) < 0.85 * losses[0]
    assert fitted.metrics["validation_loss"] < np.log(16)


def _train(order: str, pipeline: Storage, out: Storage) -> None:
    torch.set_num_threads(1)
    train(of_order(order, tiny_transformer_config(60)), pipeline, out)


@pytest.mark.parametrize("order", ["raster", "any"])
def test_sigkill_half_way_and_resuming_gives_bit_identical_weights(
    order: str, pipeline: Storage, tmp_path: Path
) -> None:
    whole_out, killed_out = Storage(str(tmp_path / "whole")), Storage(str(tmp_path / "killed"))
    whole = PROCESSES.Process(target=_train, args=(order, pipeline, whole_out))
    whole.start()
    worker = PROCESSES.Process(target=_train, args=(order, pipeline, killed_out))
    worker.start()
    while not list(Path(killed_out.root).glob("checkpoints/transformer/*/step-0000002*")):
        assert worker.is_alive(), "the training ended before it could be killed"
        time.sleep(0.01)
    assert worker.pid
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    assert not Path(killed_out.root, "current").exists()
    again = PROCESSES.Process(target=_train, args=(order, pipeline, killed_out))
    again.start()
    for process in (whole, again):
        process.join()
        assert process.exitcode == 0
    one, other = (out.current("transformer", "tests").path for out in (whole_out, killed_out))
    for read in (Checkpoint.weights, lambda one: one.resume()["model"]):
        first, second = read(Checkpoint(one)), read(Checkpoint(other))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


def make_task(
    pipeline: Storage, micro_batch: int | None = None, **fields: Any
) -> transformer.TransformerTask:
    config = tiny_transformer_config().model_copy(update=fields)
    train = config.train.model_copy(update={"batch_size": 400, "micro_batch": micro_batch})
    shards = TokenShards(pipeline.current("tokens", "tests").path, seed=0)
    config = config.model_copy(update={"train": train})
    return transformer.TransformerTask(config, shards, ["a red disc", "a blue square"])


def test_validation_takes_no_more_rows_at_once_than_training(pipeline: Storage) -> None:
    seen, losses = list[int](), []
    for micro_batch in (None, 1):
        task = make_task(pipeline, micro_batch=micro_batch)
        task.model.eval()
        counted = patch.object(transformer, "generation_loss", wraps=transformer.generation_loss)
        with torch.no_grad(), counted as loss:
            losses.append(task.validate().metrics["validation_loss"])
        seen.append(max(len(call.args[1]) for call in loss.call_args_list))
    assert seen == [2, 1]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_conditions_are_dropped_and_codes_corrupted_at_their_rates(pipeline: Storage) -> None:
    batch = make_task(pipeline, corrupt=0.5, drop_condition=0.3).batch(0)
    changed = (batch.inputs != batch.codes[:, :-1]).float().mean().item()
    assert changed == pytest.approx(0.25 * 15 / 16, abs=0.03)
    assert batch.dropped.float().mean().item() == pytest.approx(0.3, abs=0.07)


def test_a_batch_is_the_same_in_one_share_and_in_three(pipeline: Storage) -> None:
    task = make_task(pipeline, corrupt=0.5, gap=GapConfig(noise="isotropic"))
    whole = task.batch(5)
    for i in range(3):
        part = task.batch(5, Share(i, 3))
        for name in ("codes", "inputs", "noise", "neighbours", "dropped", "embedding"):
            assert torch.equal(getattr(whole, name)[i::3], getattr(part, name))
        assert torch.equal(
            condition_of(whole, task.transformer.gap)[i::3], condition_of(part, task.transformer.gap)
        )


def test_conditions_are_computed_in_fp32_also_under_autocast(pipeline: Storage) -> None:
    task = make_task(pipeline, gap=GapConfig(noise="residual"))
    batch = task.batch(0)
    with torch.autocast("cpu", torch.bfloat16):
        half = condition_of(batch, task.transformer.gap)
    assert half.dtype is torch.float32 and torch.equal(half, condition_of(batch, task.transformer.gap))


def test_orders_are_of_the_step_and_the_row_in_any_share(pipeline: Storage) -> None:
    model = tiny_transformer_config().model.model_copy(update={"order": "any"})
    task = make_task(pipeline, model=model, corrupt=0.5)
    whole, later = task.batch(5), task.batch(6)
    assert whole.layout and later.layout
    assert not torch.equal(whole.layout.targets, later.layout.targets)
    for i in range(3):
        part = task.batch(5, Share(i, 3))
        assert part.layout and torch.equal(part.inputs, whole.inputs[i::3])
        for name in ("positions", "targets", "steps"):
            assert torch.equal(getattr(whole.layout, name)[i::3], getattr(part.layout, name))
    held = whole.layout.held(whole.codes)
    assert ((whole.inputs < 0) == (held < 0)).all()
    assert 0.15 < (whole.inputs != held)[held >= 0].float().mean().item() < 0.35


def test_neighbours_are_the_nearest_other_pictures(pipeline: Storage) -> None:
    model = tiny_transformer_config().model.model_copy(update={"neighbours": 2})
    task = make_task(pipeline, model=model, drop_condition=0.0)
    condition = condition_of(task.batch(0), task.transformer.gap)
    assert condition.shape == (400, 3, 32)
    own, beside = condition[:, 0], condition[:, 1:]
    cosine = own @ torch.from_numpy(np.concatenate(list(task.shards.embeddings()))).T
    best = cosine.topk(3, dim=1).values
    assert torch.allclose((beside * own.unsqueeze(1)).sum(-1), best[:, 1:], atol=1e-5)


def test_the_embedding_loss_pulls_pictures_towards_their_embedding(
    pipeline: Storage, storage: Storage
) -> None:
    config = tiny_transformer_config(4, log_every=1).model_copy(update={"embedding_weight": 2.0})
    fitted = train(config, pipeline, storage).fitted
    row = fitted.history[0]
    assert row["loss"] == pytest.approx(row["code_loss"] + 2 * row["embedding_loss"], rel=1e-3)


def test_the_best_checkpoint_is_used_after_early_stopping(pipeline: Storage, storage: Storage) -> None:
    config = tiny_transformer_config(400, patience=2, keep_checkpoints=1)
    fitted = train(config.model_copy(update={"corrupt": 0.0}), pipeline, storage).fitted
    scores = {row["step"]: row["validation_loss"] for row in fitted.history if "validation_loss" in row}
    best = min(scores, key=lambda step: scores[step])
    assert fitted.checkpoint.endswith(f"step-{int(best):08d}")
    assert storage.current("transformer", "tests").path == fitted.checkpoint
    assert list(scores)[-1] < 400 and list(scores).index(best) == len(scores) - 3
