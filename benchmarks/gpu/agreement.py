"""Whether the device computes what a CPU does, and whether a training goes on and spreads over processes."""

import contextlib
import multiprocessing
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.inputs import TEXTS, Inputs
from benchmarks.timing import Row
from clipgen_core.data.order import WHOLE, Share
from clipgen_core.data.tokens import TokenShards
from clipgen_core.generation.load import load_vqgan
from clipgen_core.generation.sampling import Sampler
from clipgen_core.recipes import Recipe
from clipgen_core.settings.sampling import SamplingConfig
from clipgen_core.settings.transformer import Config
from clipgen_core.stages.transformer import TransformerTask
from clipgen_core.tracking import NullTracker
from clipgen_core.training import distributed
from clipgen_core.training.batches import Batch
from clipgen_core.training.checkpoint import Checkpoint, Checkpoints
from clipgen_core.training.loop import Fitted, fit
from clipgen_core.training.provenance import Provenance

ROWS = 4
KILLED_AT, STEPS = 6, 8  # of a small training, which keeps a checkpoint every 4 steps


class Killed(Exception):
    """Ends a training in its middle."""


def agreement(inputs: Inputs) -> Iterator[Row]:
    """Codes, logits and samples of the device beside those of a CPU."""
    recipe = _smallest(inputs)
    yield _codes(inputs, recipe)
    torch.manual_seed(0)
    model = inputs.transformer(recipe, "raster")
    embedding = F.normalize(torch.randn(ROWS, 1, model.embedding_dim), dim=-1)
    codes = torch.randint(model.head.out_features, (ROWS, model.positions - 1))
    with torch.no_grad():
        expected = model(codes, embedding)
        there = model.to(inputs.device, torch.bfloat16)(
            codes.to(inputs.device), embedding.to(inputs.device, torch.bfloat16)
        )
    error = ((there.float().cpu() - expected).norm() / expected.norm()).item()
    yield Row("agreement", "logits in bf16 against fp32 on the CPU, relative", error, "", "<= 0.01", "")
    for order in ("raster", "any"):
        yield _samples(inputs, recipe, order)


def _smallest(inputs: Inputs) -> Recipe:
    return min(inputs.sizes.recipes.values(), key=lambda recipe: recipe.transformer.model.layers)


@torch.no_grad()
def _codes(inputs: Inputs, recipe: Recipe) -> Row:
    """The share of equal codes of images; features that lie between two codes may fall to either."""
    size, where = recipe.vqgan.model.image_size, inputs.vqgan(recipe)
    images = torch.rand(ROWS, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    here, there = load_vqgan(where, "cpu"), load_vqgan(where, str(inputs.device))
    equal = here.encode(images) == there.encode(images.to(inputs.device)).cpu()
    return Row("agreement", "equal codes of the VQGAN, fp32", equal.float().mean().item(), "", ">= 0.99", "")


def _samples(inputs: Inputs, recipe: Recipe, order: str) -> Row:
    """The share of equal codes of samples with the same seeds, in every mode."""
    torch.manual_seed(0)
    model, config = inputs.transformer(recipe, order), SamplingConfig(guidance_scale=2.0)
    embedding = F.normalize(torch.randn(ROWS, 1, model.embedding_dim), dim=-1)
    expected = Sampler(model, "eager")(embedding, range(ROWS), config)
    moved = model.to(inputs.device)

    def equal(sampled: Tensor) -> float:
        return (sampled.cpu() == expected).float().mean().item()

    shares = [
        equal(Sampler(moved, mode)(embedding.to(inputs.device), range(ROWS), config))
        for mode in ("eager", "fixed")
    ]
    detail = f"eager {shares[0]:.3f}, fixed {shares[1]:.3f}; after a first other code the rest differs"
    return Row("agreement", f"equal codes of samples, fp32, {order}", min(shares), "", "", detail)


def resuming(inputs: Inputs) -> Iterator[Row]:
    """A training that is killed and goes on, beside one that is not."""
    whole = _weights(_train(inputs, "whole"))
    with contextlib.suppress(Killed):
        _train(inputs, "killed", kill=True)
    error = _difference(_weights(_train(inputs, "killed")), whole)
    yield Row(
        "resuming", "weights of a resumed training, largest relative difference", error, "", "<= 1e-3", ""
    )


def _train(inputs: Inputs, name: str, *, kill: bool = False) -> Fitted:
    """A small training; killed in its middle, it leaves its checkpoints."""
    recipe = _smallest(inputs)
    train = {"steps": STEPS, "batch_size": 16, "micro_batch": 16, "checkpoint_every": 4, "patience": 0}
    settings: dict[str, Any] = {f"transformer.train.{key}": value for key, value in train.items()}
    settings |= {"transformer.model.dropout": 0.0}  # which each process draws for itself
    config = recipe.override(settings).transformer
    shards = TokenShards(inputs.shards(recipe), 0)
    provenance = Provenance(config=config.model_dump(mode="json"), tokens=shards.manifest)
    checkpoints = Checkpoints(url=f"{inputs.folder}/trained/{name}", provenance=provenance)
    kind = _Killed if kill else TransformerTask
    return fit(
        lambda: kind(config, shards, TEXTS),
        config.train,
        checkpoints=checkpoints,
        tracker=NullTracker(),
        label="transformer",
    )


class _Killed(TransformerTask):
    """Ends in the middle."""

    def __init__(self, config: Config, shards: TokenShards, texts: list[str]) -> None:
        super().__init__(config, shards, texts)

    def batch(self, step: int, share: Share = WHOLE) -> Batch:
        if step == KILLED_AT:
            raise Killed
        return super().batch(step, share)


def _weights(fitted: Fitted) -> dict[str, Tensor]:
    return Checkpoint(fitted.checkpoint).weights()


def _difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of a weight, as a share of its length."""
    pairs = ((one[name].float(), other[name].float()) for name in one)
    return max(((a - b).norm() / b.norm().clamp(min=1e-12)).item() for a, b in pairs)


def processes(inputs: Inputs) -> Iterator[Row]:
    """The same small training in two processes: by NCCL on two GPUs, else by gloo on one device."""
    whole, gpus = _weights(_train(inputs, "whole")), 0
    if inputs.device.type == "cuda":
        gpus = torch.cuda.device_count()
    backend = "nccl" if gpus > 1 else "gloo"
    spawned = multiprocessing.get_context("spawn")
    workers = [spawned.Process(target=_worker, args=(inputs, rank, backend)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise RuntimeError("a process of the training failed: its error is above")
    error = _difference(_weights(_train(inputs, "both")), whole)
    what = f"weights of two processes by {backend}, largest relative difference"
    yield Row("processes", what, error, "", "<= 1e-2", f"{max(gpus, 1)} device(s)")


def _worker(inputs: Inputs, rank: int, backend: str) -> None:
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(inputs.port), "WORLD_SIZE": "2"}
    os.environ |= here | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    if backend == "gloo":  # which `distributed.start` does not choose on GPUs
        dist.init_process_group("gloo")
    distributed.start()
    _train(inputs, "both")
    dist.destroy_process_group()
