"""How fast embedding, encoding, training and sampling are."""

import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu.inputs import TEXTS, Inputs, Pictures
from benchmarks.gpu.spent import copy_speed, matrix_peak, seconds, spent
from benchmarks.timing import Row
from clipgen_core.data.decode import decode_stored
from clipgen_core.data.order import Share
from clipgen_core.data.prefetch import bounded_map, pool_size, prefetch
from clipgen_core.data.tokens import TokenShards
from clipgen_core.data.transfer import Transfer
from clipgen_core.device import autocast, fast_dtype, fp32_products
from clipgen_core.generation.batch import Mode
from clipgen_core.generation.load import load_vqgan
from clipgen_core.generation.sampling import Sampler
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.plan.memory import need_of
from clipgen_core.recipes import Recipe
from clipgen_core.settings.sampling import SamplingConfig
from clipgen_core.settings.training import TrainConfig
from clipgen_core.stages.transformer import TransformerTask
from clipgen_core.stages.vqgan import VqganTask
from clipgen_core.training.compiling import compile_model
from clipgen_core.training.task import Task, train_step

EMBEDDED, ENCODED = 256, 64  # images at once
NOT_COUNTED = 3  # first steps of a training with its data
GUIDANCE = 2.0


def peaks(inputs: Inputs) -> Iterator[Row]:
    """What the device can do at best."""
    product = matrix_peak(inputs.device, inputs.sizes.matrix, inputs.sizes.rounds)
    yield Row("peaks", "matrix product", product / 1e12, " TFLOP/s", "", f"side {inputs.sizes.matrix}")
    copied = copy_speed(inputs.device, inputs.sizes.rounds, inputs.sizes.copied)
    yield Row("peaks", "copy in its memory, read and written", copied / 1e9, " GB/s", "", "")


def embedding(inputs: Inputs) -> Iterator[Row]:
    """From JPEGs to CLIP embeddings, and by the model alone."""
    encoder, jpegs = ClipEncoder(inputs.clip), inputs.jpegs()
    batches = [jpegs[i : i + EMBEDDED] for i in range(0, len(jpegs), EMBEDDED)]
    cores = pool_size()

    def whole() -> None:
        prepared = bounded_map(
            lambda data: encoder.preprocess(decode_stored(data)), jpegs, cores, 2 * EMBEDDED
        )
        for batch in batches:
            encoder.encode_prepared(torch.stack([next(prepared) for _ in batch]))

    ready = torch.stack([encoder.preprocess(decode_stored(data)) for data in batches[0]])
    alone = spent(lambda: encoder.encode_prepared(ready), inputs.device, inputs.sizes.rounds)
    took = seconds(whole, inputs.device)
    side = inputs.sizes.jpeg_side
    yield Row(
        "embedding",
        "images/s from JPEGs",
        len(jpegs) / took,
        "",
        ">= 5000",
        f"{side} px, {cores} cores: {len(jpegs) / took / cores:.0f} images/s a core",
    )
    yield Row("embedding", "images/s of the model", len(ready) / alone.seconds, "", "", f"batch {len(ready)}")


def encoding(inputs: Inputs) -> Iterator[Row]:
    """Images to codes by the VQGAN."""
    name, recipe = next(iter(inputs.sizes.recipes.items()))
    model, size = load_vqgan(inputs.vqgan(recipe)), recipe.vqgan.model.image_size
    images = torch.rand(ENCODED, 3, size, size, device=inputs.device) * 2 - 1

    @torch.no_grad()
    def encode() -> None:
        with autocast(inputs.device):
            model.encode(images)

    took = spent(encode, inputs.device, inputs.sizes.rounds)
    share = took.share(inputs.peak)
    yield Row(
        "encoding", f"images/s, VQGAN of {name}", ENCODED / took.seconds, "", "", f"{share:.0%} of the peak"
    )


def vqgan(inputs: Inputs) -> Iterator[Row]:
    """Training the VQGAN, with its discriminator."""
    name, recipe = next(iter(inputs.sizes.recipes.items()))
    pictures: Any = Pictures(inputs.jpegs())
    task = VqganTask(recipe.vqgan, pictures, ClipEncoder(inputs.clip))
    need = _counted(inputs, "vqgan", recipe)
    yield from _training(inputs, f"VQGAN of {name}", task, recipe.vqgan.train, need, ">= 0.4")


def transformer(inputs: Inputs) -> Iterator[Row]:
    """Training the transformers, and the first one also in any order."""
    for i, (name, recipe) in enumerate(inputs.sizes.recipes.items()):
        for order in ("raster", "any") if i == 0 else ("raster",):
            of_order = recipe.override({"transformer.model.order": order})
            config, need = of_order.transformer, _counted(inputs, "transformer", of_order)
            shards = TokenShards(inputs.shards(recipe), config.train.seed)
            task = TransformerTask(config, shards, TEXTS)
            bar = ">= 0.5" if i == 0 else ""
            yield from _training(inputs, f"{name}, {order}", task, config.train, need, bar)


def _counted(inputs: Inputs, stage: str, recipe: Recipe) -> float:
    """The memory of a training by `clipgen plan`, in bytes, without that of CUDA itself."""
    need = need_of(stage, recipe, ClipEncoder(inputs.clip), gpu=inputs.device.type == "cuda")
    return need.total - need.context


def _training(
    inputs: Inputs, what: str, task: Task, config: TrainConfig, need: float, bar: str
) -> Iterator[Row]:
    """Steps on a batch that is there, steps with their data, and compiled steps; `need` is the memory that
    `clipgen plan` counts."""
    device, optimizers, transfer = inputs.device, task.optimizers(), Transfer(inputs.device)
    late, size = config.steps - 1, config.batch_size  # so late that a discriminator takes part
    passes = config.passes()

    def load(step: int) -> list[Any]:
        parts = (Share(i, passes) for i in range(passes))
        return [transfer.begin(task.batch(step, part)) for part in parts]

    def step(ready: list[Any]) -> None:
        with fp32_products(device, "high"):
            train_step(task, optimizers, ready, late, config)

    batches = [transfer.end(moving) for moving in load(0)]
    task.model.train()
    alone = spent(lambda: step(batches), device, inputs.sizes.rounds)
    memory = f"{alone.memory / 1e9:.1f} GB of {need / 1e9:.1f} counted"
    detail = f"{passes} passes of {size // passes}, {memory}, {alone.kernels} kernels a step"
    yield Row("training", f"{what}: images/s", size / alone.seconds, "", "", detail)
    yield Row("training", f"{what}: share of the peak", alone.share(inputs.peak), "", bar, "")
    waits = max(0.0, 1 - alone.seconds / _seconds_with_data(inputs, step, load, transfer))
    yield Row("training", f"{what}: share of the time that waits for data", waits, "", "<= 0.05", "")
    if inputs.sizes.compiled:
        compile_model(task.model)
        compiling = seconds(lambda: step(batches), device)
        compiled = spent(lambda: step(batches), device, inputs.sizes.rounds, counted=False)
        reached = alone.operations / compiled.seconds / inputs.peak
        detail = f"{reached:.2f} of the peak, {compiled.memory / 1e9:.1f} GB, first step {compiling:.0f} s"
        yield Row("training", f"{what}: images/s, compiled", size / compiled.seconds, "", "", detail)


def _seconds_with_data(inputs: Inputs, step: Any, load: Any, transfer: Transfer) -> float:
    """Mean seconds of a step that takes its batch from the loader, after the first ones."""
    count, began = inputs.sizes.rounds + NOT_COUNTED, 0.0
    for number, moving in prefetch(load, 1, count + 1):
        if number == NOT_COUNTED + 1:
            seconds(lambda: None, inputs.device)
            began = time.perf_counter()
        step([transfer.end(one) for one in moving])
    seconds(lambda: None, inputs.device)
    return (time.perf_counter() - began) / inputs.sizes.rounds


def sampling(inputs: Inputs) -> Iterator[Row]:
    """Generating codes with guidance: raster order in every mode, and any order in few steps."""
    name, recipe = next(iter(inputs.sizes.recipes.items()))
    eager = dict[int, float]()
    modes: list[Mode] = ["eager", "fixed", *(["compiled"] if inputs.sizes.compiled else [])]  # type: ignore[list-item]
    for order, steps in (("raster", 0), ("any", inputs.sizes.steps)):
        model = inputs.transformer(recipe, order).to(inputs.device, fast_dtype(inputs.device))
        for mode in modes:
            sampler = Sampler(model, mode)
            for rows in inputs.sizes.batches:
                took, first = _sampling(inputs, sampler, rows, steps)
                detail = f"first call {first:.1f} s"
                if order == "raster" and mode == "eager":
                    eager[rows] = took
                elif order == "raster":
                    detail += f", {eager[rows] / took:.1f}x of eager"
                bar = ">= 100" if order == "any" and rows == max(inputs.sizes.batches) else ""
                what = (
                    f"{name}, {order}{f' in {steps} steps' if steps else ''}, {mode}, batch {rows}: images/s"
                )
                yield Row("sampling", what, rows / took, "", bar, detail)


def _sampling(inputs: Inputs, sampler: Sampler, rows: int, steps: int) -> tuple[float, float]:
    """Seconds of a call, and of the first one."""
    embedding = F.normalize(torch.randn(rows, 1, inputs.sizes.clip.embed_dim, device=inputs.device), dim=-1)
    config = SamplingConfig(
        guidance_scale=GUIDANCE, top_k=min(500, sampler.model.head.out_features), steps=steps
    )

    def sample() -> None:
        sampler(embedding, range(rows), config)

    first = seconds(sample, inputs.device)
    return min(seconds(sample, inputs.device) for _ in range(2)), first
