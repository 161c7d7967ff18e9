"""Two processes over gloo against one: the same batch, the same curve, the same weights."""

import functools
import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from clipgen_core.errors import ClipgenError
from clipgen_core.filesystem import list_folder
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.settings.training import TrainConfig
from clipgen_core.stages import clip, transformer, vqgan
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker
from clipgen_core.training import distributed, muon
from clipgen_core.training.checkpoint import Checkpoint, Checkpoints
from clipgen_core.training.loop import fit
from clipgen_core.training.provenance import Provenance
from clipgen_core.training.task import Validation
from tests.conftest import PROCESSES, free_port, tiny_clip_config, tiny_transformer_config, tiny_vqgan_config
from tests.core.training.test_loop import LineTask
from tests.core.training.test_loop import config as line_config


def config(order: str = "raster", **train: Any) -> transformer.Config:
    made = tiny_transformer_config(6, **({"precision": "fp32", "log_every": 1} | train))
    model = made.model.model_copy(update={"dropout": 0.0, "order": order})
    return made.model_copy(update={"model": model})


def train(stage: str, made: Any, pipeline: Storage, out: Storage) -> None:
    torch.set_num_threads(1)
    if made.train.compile:  # by a backend that needs no C++ compiler
        torch.compile = functools.partial(torch.compile, backend="eager")  # type: ignore[assignment]
    if stage == "transformer":
        shards = pipeline.current("tokens", "tests").path
        transformer.run(made, tokens=shards, out=out, tracker=NullTracker())
    elif stage == "clip":
        clip.run(made, captions=f"{pipeline.root}/captions.csv", out=out, tracker=NullTracker())
    else:
        seen = pipeline.current("clip", "tests").path
        vqgan.run(made, images=pipeline.images, clip=seen, out=out, tracker=NullTracker())


def worker(rank: int, port: int, *args: Any) -> None:
    as_one_of_two(rank, port, lambda: train(*args))


def as_one_of_two(rank: int, port: int, call: Callable[[], object]) -> None:
    """Call something as one of two processes."""
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in environment.items()} | {"MASTER_ADDR": "127.0.0.1"}
    if torch.cuda.device_count() == 1:  # NCCL takes one process a GPU
        dist.init_process_group("gloo")
    distributed.start()
    call()
    dist.destroy_process_group()


def in_two_processes(*args: Any) -> None:
    run_two(worker, *args)


def run_two(target: Callable[..., None], *args: Any) -> None:
    port = free_port()
    workers = [PROCESSES.Process(target=target, args=(rank, port, *args)) for rank in range(2)]
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
    "how", [{"parallel": "ddp"}, {"parallel": "fsdp"}, {"parallel": "ddp", "micro_batch": 2}], ids=str
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
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_train_compiled_blocks(
    parallel: str, alone: Storage, pipeline: Storage, tmp_path: Path
) -> None:
    out = Storage(str(tmp_path / "together"))
    in_two_processes("transformer", config(parallel=parallel, compile=True), pipeline, out)
    assert curve(out, "transformer") == pytest.approx(curve(alone, "transformer"), rel=1e-4)


@pytest.mark.parametrize("order", ["raster", "any"])
def test_sharded_weights_travel_in_bf16_and_train_as_in_one_process(
    order: str, pipeline: Storage, tmp_path: Path
) -> None:
    one, two = Storage(str(tmp_path / "one")), Storage(str(tmp_path / "two"))
    half = {"precision": "bf16", "parallel": "fsdp"}
    train("transformer", config(order, **half), pipeline, one)
    in_two_processes("transformer", config(order, **half), pipeline, two)
    assert curve(two, "transformer") == pytest.approx(curve(one, "transformer"), rel=2e-2)
    weights = Checkpoint(two.current("transformer", "tests").path).weights()
    assert all(value.dtype is torch.float32 for value in weights.values() if value.is_floating_point())


def disagree(rank: int, port: int, folder: str) -> None:
    """Train a line that gets better in the first process and worse in the other, as they see it."""

    class Seen(LineTask):
        def validate(self) -> Validation:
            better = len(self.seen) * (-1 if distributed.rank() == 0 else 1)
            return Validation({"validation_loss": float(better)})

    def fitted() -> None:
        made = line_config(40, patience=2, ema_decay=0.0)
        checkpoints = Checkpoints(url=folder, provenance=Provenance(config={}))
        fit(Seen, made, checkpoints=checkpoints, tracker=NullTracker(), label="line")

    as_one_of_two(rank, port, fitted)


def test_the_first_process_decides_when_patience_ends(tmp_path: Path) -> None:
    run_two(disagree, str(tmp_path))
    assert Checkpoint(f"{tmp_path}/step-00000040").state.step == 40


def on_machines_that_differ(rank: int, port: int, folder: str) -> None:
    """Write what Muon makes of a weight where the first process's machine is fast in bf16 alone."""

    def stepped() -> None:
        own = torch.float32 if distributed.rank() else torch.bfloat16
        weight = torch.nn.Parameter(torch.ones(8, 16))
        with patch.object(muon, "fast_dtype", lambda _: own):
            optimizer = muon.Muon([weight], lr=0.1, adjust_lr_fn="match_rms_adamw")
        weight.grad = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
        optimizer.step()
        torch.save(weight.detach(), f"{folder}/{distributed.rank()}.pt")

    as_one_of_two(rank, port, stepped)


def test_muon_computes_alike_on_machines_that_differ(tmp_path: Path) -> None:
    run_two(on_machines_that_differ, str(tmp_path))
    assert torch.equal(*(torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)))


@pytest.mark.parametrize(("rank", "gpus", "own"), [(1, 4, 1), (3, 1, 0), (0, 8, 0)])
def test_every_process_has_a_gpu_of_its_own(
    rank: int, gpus: int, own: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = pretend_gpus(monkeypatch, rank, gpus)
    distributed.start()
    assert said["backend"] == "nccl" and said["device_id"] == torch.device("cuda", own)
    assert said["timeout"] >= timedelta(hours=1)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 2, 2)
    with pytest.raises(ClipgenError, match="process 2 of this machine has no GPU, as there are 2: start 2"):
        distributed.start()


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, rank: int, gpus: int) -> dict[str, Any]:
    """GPUs of which only the numbers are read; gets what the process group was made with."""
    current, said = [0], dict[str, Any]()
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: current.__setitem__(0, number))
    monkeypatch.setattr(
        dist, "init_process_group", lambda backend, **given: said.update(given, backend=backend)
    )
    return said


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
        {"parallel": "ddp", "micro_batch": 2, "recompute": True},
        {"parallel": "fsdp", "micro_batch": 2, "ema_decay": 0.5, "recompute": True},
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
    train("transformer", config(micro_batch=2), pipeline, storage)
    assert curve(storage, "transformer") == pytest.approx(curve(alone, "transformer"), rel=1e-4)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_rows_of_which_different_parts_are_given_count_alike_in_two_processes(
    parallel: str, pipeline: Storage, tmp_path: Path
) -> None:
    one, two = Storage(str(tmp_path / "one")), Storage(str(tmp_path / "two"))
    train("transformer", config("any"), pipeline, one)
    in_two_processes("transformer", config("any", parallel=parallel, micro_batch=2), pipeline, two)
    assert curve(two, "transformer") == pytest.approx(curve(one, "transformer"), rel=1e-4)


@pytest.mark.parametrize(
    ("micro_batch", "processes", "passes"),
    [(None, 2, 1), (8, 1, 1), (7, 1, 2), (2, 1, 4), (2, 2, 2), (1, 4, 2)],
)
def test_a_step_is_split_into_the_fewest_passes(micro_batch: int | None, processes: int, passes: int) -> None:
    assert config(micro_batch=micro_batch).train.passes(processes) == passes


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ClipgenError, match="batch_size 8 is not divisible by 3 processes: change one"):
        config().train.passes(3)


def test_records_of_earlier_versions_hold_the_number_of_passes() -> None:
    record = config().train.model_dump() | {"accumulate": 4}
    del record["micro_batch"]
    assert TrainConfig.model_validate(record).passes() == 4
    assert TrainConfig.model_validate(record | {"accumulate": 1}).passes() == 1
