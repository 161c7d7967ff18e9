"""Two processes over gloo against one: the same batch, the same curve, the same weights."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from clipgen_core.errors import ClipgenError
from clipgen_core.filesystem import list_folder
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.stages import clip, transformer, vqgan
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker
from clipgen_core.training import distributed
from clipgen_core.training.checkpoint import Checkpoint, Checkpoints
from clipgen_core.training.provenance import Provenance
from tests.conftest import PROCESSES, free_port, tiny_clip_config, tiny_transformer_config, tiny_vqgan_config


def config(order: str = "raster", **train: Any) -> transformer.Config:
    made = tiny_transformer_config(6, precision="fp32", log_every=1, **train)
    model = made.model.model_copy(update={"dropout": 0.0, "order": order})
    return made.model_copy(update={"model": model})


def train(stage: str, made: Any, pipeline: Storage, out: Storage) -> None:
    torch.set_num_threads(1)
    if stage == "transformer":
        shards = pipeline.current("tokens", "tests").path
        transformer.run(made, tokens=shards, out=out, tracker=NullTracker())
    elif stage == "clip":
        clip.run(made, captions=f"{pipeline.root}/captions.csv", out=out, tracker=NullTracker())
    else:
        seen = pipeline.current("clip", "tests").path
        vqgan.run(made, images=pipeline.images, clip=seen, out=out, tracker=NullTracker())


def worker(rank: int, port: int, *args: Any) -> None:
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in environment.items()} | {"MASTER_ADDR": "127.0.0.1"}
    distributed.start()
    train(*args)
    dist.destroy_process_group()


def in_two_processes(*args: Any) -> None:
    port = free_port()
    workers = [PROCESSES.Process(target=worker, args=(rank, port, *args)) for rank in range(2)]
    for one in workers:
        one.start()
    for one in workers:
        one.join(120)
        assert one.exitcode == 0


def in_ray(made: transformer.Config, pipeline: Storage, out: Storage, scratch: str) -> None:
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    shards = pipeline.current("tokens", "tests").path

    def loop() -> None:  # Ray has made the process group
        torch.set_num_threads(1)
        distributed.start()
        transformer.run(made, tokens=shards, out=out, tracker=NullTracker())

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    TorchTrainer(
        loop, scaling_config=ScalingConfig(num_workers=2), run_config=RunConfig(storage_path=scratch)
    ).fit()


def curve(out: Storage, stage: str) -> list[float]:
    history = Checkpoint(out.current(stage, "tests").path).state.history
    return [row[name] for row in history for name in ("loss", "validation_loss") if name in row]


def clip_losses(out: Storage) -> list[float]:
    (run,) = list_folder(out.path("checkpoints", "clip"))
    newest = Checkpoints(url=out.checkpoints("clip", run), provenance=Provenance(config={})).latest()
    assert newest
    return [row["loss"] for row in newest.state.history if "loss" in row]


@pytest.fixture
def alone(pipeline: Storage, tmp_path: Path) -> Storage:
    out = Storage(str(tmp_path / "alone"))
    train("transformer", config(), pipeline, out)
    return out


@pytest.mark.parametrize(
    "how", [{"parallel": "ddp"}, {"parallel": "fsdp"}, {"parallel": "ddp", "accumulate": 2}], ids=str
)
def test_two_processes_train_as_one(
    how: dict[str, Any], alone: Storage, pipeline: Storage, tmp_path: Path
) -> None:
    out = Storage(str(tmp_path / "together"))
    in_two_processes("transformer", config(**how), pipeline, out)
    assert curve(out, "transformer") == pytest.approx(curve(alone, "transformer"), rel=1e-4)
    one, two = (Checkpoint(root.current("transformer", "tests").path).weights() for root in (alone, out))
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)


@pytest.mark.slow
def test_ray_starts_them_as_torchrun_does(
    only_ray: None, alone: Storage, pipeline: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    out = Storage(str(tmp_path / "together"))
    given = (config(), pipeline, out, str(tmp_path / "ray"))
    driver = PROCESSES.Process(target=in_ray, args=given)
    driver.start()
    driver.join(300)
    assert driver.exitcode == 0
    assert curve(out, "transformer") == pytest.approx(curve(alone, "transformer"), rel=1e-4)


def test_sharded_training_resumes_with_muon(pipeline: Storage, tmp_path: Path) -> None:
    made = config(parallel="fsdp", optimizer="muon")
    whole, parts = Storage(str(tmp_path / "whole")), Storage(str(tmp_path / "parts"))
    in_two_processes("transformer", made, pipeline, whole)
    in_two_processes("transformer", made, pipeline, parts)
    shutil.rmtree(parts.current("transformer", "tests").path)
    in_two_processes("transformer", made, pipeline, parts)
    one, two = (Checkpoint(root.current("transformer", "tests").path).weights() for root in (whole, parts))
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)


def vqgan_config(recompute: bool = False, **train: Any) -> vqgan.Config:
    made = tiny_vqgan_config(6, precision="fp32", log_every=1, **train)
    return made.model_copy(update={"recompute": recompute})


@pytest.fixture(scope="module")
def vqgan_alone(pipeline: Storage, tmp_path_factory: pytest.TempPathFactory) -> Storage:
    out = Storage(str(tmp_path_factory.mktemp("vqgan")))
    train("vqgan", vqgan_config(), pipeline, out)
    return out


@pytest.mark.parametrize(
    "how",
    [
        {"parallel": "ddp"},
        {"parallel": "ddp", "accumulate": 2, "recompute": True},
        {"parallel": "fsdp", "accumulate": 2, "ema_decay": 0.5, "recompute": True},
    ],
    ids=str,
)
def test_the_vqgan_and_its_discriminator_train_in_two_processes(
    how: dict[str, Any], vqgan_alone: Storage, pipeline: Storage, tmp_path: Path
) -> None:
    out = Storage(str(tmp_path / "root"))
    in_two_processes("vqgan", vqgan_config(**how), pipeline, out)
    one, two = (Checkpoint(root.current("vqgan", "tests").path) for root in (vqgan_alone, out))
    assert [row["step"] for row in two.state.history if "discriminator" in row] == [4, 5, 6]
    for name in ("loss", "codes_in_batch", "codes_replaced"):  # each process weighs its own discriminator
        alone, together = ([row[name] for row in of.state.history[:3]] for of in (one, two))
        assert together == pytest.approx(alone, rel=1e-3)
    codebooks = [of.weights()["quantizer.vq._codebook.embed"] for of in (one, two)]
    assert torch.allclose(codebooks[0], codebooks[1], atol=0.1)


def test_two_processes_contrast_the_pictures_of_both(pictures: Path, tmp_path: Path) -> None:
    tiny = tiny_clip_config(6)
    given = tiny.train.model_copy(update={"precision": "fp32", "log_every": 1, "clip_norm": 1e9})
    given = given.model_copy(update={"batch_size": 18})  # divides the 63 images that are not held out
    made = tiny.model_copy(update={"train": given, "soften": 0.3})
    alone, together = Storage(str(tmp_path / "alone")), Storage(str(tmp_path / "together"))
    train("clip", made, Storage(str(pictures)), alone)
    in_two_processes("clip", made, Storage(str(pictures)), together)
    one, two = (clip_losses(root) for root in (alone, together))
    assert len(one) == 6 and one == pytest.approx(two, rel=1e-3)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_clip_trains_where_the_last_batch_does_not_divide(
    pictures: Path, tmp_path: Path, parallel: str
) -> None:
    rows = (pictures / "captions.csv").read_text().splitlines()
    (tmp_path / "pictures").symlink_to(pictures / "pictures")
    (tmp_path / "captions.csv").write_text("\n".join(rows[:26]))
    tiny, out = tiny_clip_config(4), Storage(str(tmp_path / "out"))
    given = tiny.train.model_copy(update={"parallel": parallel, "log_every": 1, "optimizer": "muon"})
    made = tiny.model_copy(update={"train": given})
    in_two_processes("clip", made, Storage(str(tmp_path)), out)
    losses = clip_losses(out)
    assert len(losses) == 4 and losses[3] < losses[0]
    assert ClipEncoder(out.current("clip", "tests").path).encode_texts(["a red disc"]).shape == (1, 32)


def test_accumulating_gives_the_gradients_of_the_whole_batch(
    alone: Storage, pipeline: Storage, storage: Storage
) -> None:
    train("transformer", config(accumulate=4), pipeline, storage)
    assert curve(storage, "transformer") == pytest.approx(curve(alone, "transformer"), rel=1e-4)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_rows_of_which_different_parts_are_given_count_alike_in_two_processes(
    parallel: str, pipeline: Storage, tmp_path: Path
) -> None:
    one, two = Storage(str(tmp_path / "one")), Storage(str(tmp_path / "two"))
    train("transformer", config("any"), pipeline, one)
    in_two_processes("transformer", config("any", parallel=parallel, accumulate=2), pipeline, two)
    assert curve(two, "transformer") == pytest.approx(curve(one, "transformer"), rel=1e-4)


def test_a_batch_that_does_not_divide_is_refused(pipeline: Storage, storage: Storage) -> None:
    with pytest.raises(ClipgenError, match="batch_size 8 is not divisible by accumulate 3"):
        config(accumulate=3)
