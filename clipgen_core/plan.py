"""Estimates what a training will need before it starts: `clipgen plan FOLDER`.

Counts the files, decodes a sample, and times each model for a few seconds on this machine: forward and
backward passes on a few images, scaled to the recipe's steps and batch size. The times leave out the
discriminator and data loading, so they are lower bounds.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipgen_core.data.decode import decode
from clipgen_core.data.rejected import Rejected
from clipgen_core.data.sources import File, Source
from clipgen_core.device import autocast, default_device
from clipgen_core.errors import ClipgenError
from clipgen_core.generation.steps import generation_loss
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.models.transformer import Transformer
from clipgen_core.models.vqgan import Vqgan
from clipgen_core.progress import track
from clipgen_core.recipes import Recipe
from clipgen_core.schema import code_type
from clipgen_core.settings.images import Accepted
from clipgen_core.settings.training import TrainConfig

SAMPLE = 64  # files that are decoded
TIMED_SECONDS = 3.0
ID_BYTES = 64
FEW = 2  # batch size of the timings


@dataclass(frozen=True)
class Line:
    """The needs of one stage.

    Attributes:
        stage: Name of its asset.
        disk: Bytes that it writes.
        memory: Bytes of device memory.
        hours: Hours on this machine.
    """

    stage: str
    disk: float = 0.0
    memory: float = 0.0
    hours: float = 0.0


@dataclass(frozen=True)
class Plan:
    """The estimate.

    Attributes:
        files: Number of files in the source.
        images: Number of images, estimated from the sample if files are archives.
        usable: Share of the sampled images that can be used.
        mean_side: Mean side of the usable images, in pixels.
        device: Name of the device.
        lines: The needs of each stage, in the pipeline's order.
    """

    files: int
    images: int
    usable: float
    mean_side: float
    device: str
    lines: tuple[Line, ...]


def plan(source: str, recipe: Recipe, clip: str | None = None) -> Plan:
    """Estimate the needs of a training; writes nothing.

    Args:
        source: Folder of the images, a local path or an fsspec URL.
        recipe: The configuration of all stages.
        clip: The CLIP to time; by default one of the architecture ViT-B/32 without weights.

    Returns:
        The estimate.

    Raises:
        ClipgenError: The source has no file, or no image of the sample can be used.
    """
    opened = Source(source)
    files, size, sample = _listed(opened)
    bad, sides, items, seconds = _decoded(opened, sample, recipe.images)
    if not sides:
        raise ClipgenError(f"none of the {items} images sampled from {source} can be used: check the folder")
    images = round(files * items / max(len(sample), 1))
    usable = 1 - bad / items
    rows = images * usable
    lines = [Line("raw_images", disk=size, hours=images * seconds / items / recipe.images.readers / 3600)]
    with track("measuring", 4, "models") as meter:
        for line in _models(recipe, clip, rows):
            lines.append(line)
            meter.advance()
    return Plan(files, images, usable, sum(sides) / len(sides), device_name(), tuple(lines))


def _listed(source: Source) -> tuple[int, int, list[File]]:
    """(files, bytes, a sample spread over them)."""
    files, size, sample = 0, 0, list[File]()
    for file in source.files():
        if len(sample) < SAMPLE or files % math.ceil(files / SAMPLE) == 0:
            sample.append(file)
        files, size = files + 1, size + file.size
    if not files:
        raise ClipgenError(f"the source folder {source.url} is empty: put images into it")
    return files, size, sample[:: math.ceil(len(sample) / SAMPLE)]


def _decoded(source: Source, sample: list[File], accepted: Accepted) -> tuple[int, list[float], int, float]:
    """(unusable, mean sides of the usable, items, seconds) of the sample; archives are read whole."""
    bad, sides, items, began = 0, list[float](), 0, time.perf_counter()
    for file in sample:
        for item in itertools.islice(source.items(file), 100_000):
            items += 1
            try:
                image = decode(item.data, accepted).image
                sides.append((image.width * image.height) ** 0.5)
            except Rejected:
                bad += 1
    return bad, sides, items, time.perf_counter() - began


def _models(recipe: Recipe, clip: str | None, rows: float) -> Iterator[Line]:
    """A line for each stage with a model, in the pipeline's order."""
    device, size = default_device(), recipe.vqgan.model.image_size
    vqgan, grid = Vqgan(recipe.vqgan.model).to(device), recipe.vqgan.model.grid
    tower = ImageTower(clip).to(device)
    codebook, views = recipe.vqgan.model.quantizer.codebook_size, recipe.tokens.views
    transformer = Transformer(recipe.transformer.model, codebook, grid, tower.dim).to(device)

    def embed() -> Tensor:
        with torch.no_grad():
            return tower(torch.randn(FEW, 3, *tower.sides, device=device))  # type: ignore[no-any-return]

    def encode() -> Tensor:
        with torch.no_grad():
            return vqgan.encode(torch.randn(FEW, 3, size, size, device=device))

    def reconstruct() -> Tensor:
        images = torch.randn(FEW, 3, size, size, device=device)
        output, _, commitment = vqgan(images)
        features = tower(F.interpolate(output.float(), tower.sides))
        return F.l1_loss(output.float(), images) + commitment + features.float().square().mean()

    def predict() -> Tensor:
        codes = torch.randint(codebook, (FEW, grid**2), device=device)
        embedding = F.normalize(torch.randn(FEW, 1, tower.dim, device=device), dim=-1)
        return generation_loss(transformer, codes, embedding)

    row = 4 * tower.dim + ID_BYTES
    codes = views * grid**2 * code_type(codebook).bit_width / 8
    yield Line("clip_embeddings", rows * row, _weights(tower), rows * _seconds(embed) / FEW / 3600)
    yield _training("vqgan_checkpoint", vqgan, reconstruct, recipe.vqgan.train)
    shards = rows * (2 * codes + ID_BYTES + views * row)
    yield Line("token_shards", shards, _weights(vqgan), rows * views * _seconds(encode) / FEW / 3600)
    yield _training("transformer_checkpoint", transformer, predict, recipe.transformer.train)


class ImageTower(nn.Module):
    """The image tower of a CLIP.

    Args:
        reference: The CLIP; by default one of the architecture ViT-B/32 without weights.
    """

    def __init__(self, reference: str | None) -> None:
        super().__init__()
        model: Any = (
            ClipEncoder(reference).model if reference else open_clip.create_model("ViT-B-32", pretrained=None)
        )
        self.visual = model.visual.eval().requires_grad_(False)
        size = self.visual.image_size
        self.sides: tuple[int, int] = (size, size) if isinstance(size, int) else tuple(size)
        with torch.no_grad():
            blank = torch.zeros(1, 3, *self.sides, device=next(self.visual.parameters()).device)
            self.dim = int(self(blank).shape[-1])

    def forward(self, images: Tensor) -> Tensor:
        """Embed preprocessed images, float [n, 3, h, w]; returns [n, d]."""
        with autocast(images.device.type):
            embedding = self.visual(images)
        return embedding[0] if isinstance(embedding, tuple) else embedding  # CoCa returns its tokens too


def _training(stage: str, model: nn.Module, loss: Callable[[], Tensor], train: TrainConfig) -> Line:
    """The needs of a training, measured with a small batch and scaled to its batch size and steps."""
    parameters, saved = sum(p.numel() for p in model.parameters()), 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.numel() * tensor.element_size()
        return tensor

    def step() -> None:
        with autocast(default_device(), train.precision):
            value = loss()
        value.backward()  # type: ignore[no-untyped-call]

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        step()
    activations = saved / FEW * train.batch_size / train.accumulate
    return Line(
        stage,
        disk=train.checkpoint_bytes(parameters),
        memory=parameters * train.bytes_per_parameter + activations,
        hours=_seconds(step) / FEW * train.batch_size * train.steps / 3600,
    )


def _weights(model: nn.Module) -> float:
    return float(sum(p.numel() * p.element_size() for p in model.parameters()))


def _seconds(call: Callable[[], object]) -> float:
    """Mean seconds of a call, over TIMED_SECONDS after a first call that is not timed."""
    call()
    _wait()
    began, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - began < TIMED_SECONDS:
        call()
        _wait()
        calls += 1
    return (time.perf_counter() - began) / calls


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def device_name() -> str:
    """Name of the GPU, or the number of CPU threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"
