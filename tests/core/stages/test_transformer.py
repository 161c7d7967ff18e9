import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from clipgen_core.data.tokens import Rows
from clipgen_core.stages import transformer
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker
from clipgen_core.training.checkpoint import read_training, read_weights
from tests.conftest import tiny_transformer_config


def train(config: transformer.Config, pipeline: Storage, out: Storage) -> transformer.Result:
    shards = pipeline.current("tokens", "tests").path
    return transformer.run(config, tokens=shards, out=out, tracker=NullTracker())


def test_training_lowers_the_held_out_loss(pipeline: Storage, storage: Storage) -> None:
    config = tiny_transformer_config(150)
    fitted = train(config.model_copy(update={"corrupt": 0.0}), pipeline, storage).fitted
    losses = [row["loss"] for row in fitted.history if "loss" in row]
    assert losses[-1] < 0.7 * losses[0]
    assert fitted.metrics["validation_loss"] < np.log(16)
    assert fitted.images["samples"].height == 2 * 32 + 2


def _train(pipeline: Storage, out: Storage) -> None:
    torch.set_num_threads(1)
    train(tiny_transformer_config(60), pipeline, out)


def test_sigkill_half_way_and_resuming_gives_bit_identical_weights(pipeline: Storage, tmp_path: Path) -> None:
    whole_out, killed_out = Storage(str(tmp_path / "whole")), Storage(str(tmp_path / "killed"))
    spawn = multiprocessing.get_context("spawn")
    whole = spawn.Process(target=_train, args=(pipeline, whole_out))
    whole.start()
    worker = spawn.Process(target=_train, args=(pipeline, killed_out))
    worker.start()
    while not list(Path(killed_out.root).glob("checkpoints/transformer/*/step-0000002*")):
        assert worker.is_alive(), "the training ended before it could be killed"
        time.sleep(0.01)
    assert worker.pid
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    assert not Path(killed_out.root, "current").exists()
    again = spawn.Process(target=_train, args=(pipeline, killed_out))
    again.start()
    for process in (whole, again):
        process.join()
        assert process.exitcode == 0
    one, other = (out.current("transformer", "tests").path for out in (whole_out, killed_out))
    for read in (read_weights, lambda url: read_training(url)["model"]):
        first, second = read(one), read(other)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_conditions_are_dropped_and_codes_corrupted_at_their_rates(pipeline: Storage) -> None:
    from clipgen_core.data.tokens import TokenShards

    config = tiny_transformer_config().model_copy(update={"corrupt": 0.5, "drop_condition": 0.3})
    shards = TokenShards(pipeline.current("tokens", "tests").path, seed=0)
    task = transformer.TransformerTask(config, shards)
    torch.manual_seed(0)
    codes = torch.zeros(2000, 15, dtype=torch.long)
    changed = (task._corrupted(codes) != 0).float().mean().item()
    assert changed == pytest.approx(0.25 * 15 / 16, abs=0.02)

    seen: list[torch.Tensor] = []
    task.transformer.register_forward_hook(lambda module, args, out: seen.append(args[1]))
    with torch.no_grad():
        task.transformer.nothing.fill_(9.0)
    rows = Rows(np.zeros((1000, 16), np.uint16), np.zeros((1000, 32), np.float32))
    next(task.losses(task._to_device(rows), 0.0))
    assert (seen[0][:, 0] == 9.0).float().mean().item() == pytest.approx(0.3, abs=0.05)
