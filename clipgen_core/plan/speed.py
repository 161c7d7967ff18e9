"""Seconds an image of each model, measured on this machine with batches like those of its training."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipgen_core.device import autocast, default_device
from clipgen_core.generation.steps import generation_loss
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.models.transformer import Transformer
from clipgen_core.models.vqgan import Vqgan
from clipgen_core.recipes import Recipe
from clipgen_core.settings.training import TrainConfig
from clipgen_core.training.optim import adamw

TIMED_SECONDS = 3.0
FEW = 2  # images of the smallest batch
LONGEST = 1.0  # seconds; a batch that takes longer is large enough


@dataclass(frozen=True)
class Speed:
    """Seconds for an image.

    Attributes:
        clip: Of a training step of the recipe's own CLIP.
        embed: By the CLIP.
        encode: By the VQGAN.
        vqgan: Of a training step of the VQGAN without the discriminator.
        transformer: Of a training step of the transformer.
    """

    clip: float
    embed: float
    encode: float
    vqgan: float
    transformer: float


def measure(recipe: Recipe, clip: ClipEncoder, own_clip: bool = False) -> Speed:
    """Time each model.

    Args:
        recipe: The models and their batches.
        clip: The CLIP that embeds images and measures perceptual distance.
        own_clip: Whether the recipe's own CLIP is trained; its time is 0 otherwise.

    Returns:
        The seconds.
    """

    def embed(rows: int) -> None:
        with torch.no_grad(), autocast(clip.device.type):
            clip.embed(torch.randn(rows, 3, *clip.image_size, device=clip.device))

    encode, vqgan = _of_vqgan(recipe, clip)
    return Speed(
        clip=_of_clip(recipe) if own_clip else 0.0,
        embed=_per_image(embed, recipe.embeddings.batch_size),
        encode=encode,
        vqgan=vqgan,
        transformer=_of_transformer(recipe, clip),
    )


def _of_clip(recipe: Recipe) -> float:
    """Seconds of a training step for an image."""
    device, config = default_device(), recipe.clip
    model = open_clip.CLIP(**config.open_clip_config(config.patch_dropout)).to(device)
    size, length = config.image_size, config.context_length

    def contrast(rows: int) -> Tensor:
        images = model.encode_image(torch.randn(rows, 3, size, size, device=device), normalize=True)
        texts = model.encode_text(torch.randint(9, 99, (rows, length), device=device), normalize=True)
        return F.cross_entropy((images @ texts.T).float(), torch.arange(rows, device=device))

    return _training(model, contrast, config.train)


def _of_vqgan(recipe: Recipe, clip: ClipEncoder) -> tuple[float, float]:
    """(seconds of encoding an image, seconds of a training step for an image)."""
    device, size = default_device(), recipe.vqgan.model.image_size
    vqgan = Vqgan(recipe.vqgan.model).to(device)
    vqgan.set_recompute(recipe.vqgan.recompute)

    def encode(rows: int) -> None:
        with torch.no_grad():
            vqgan.encode(torch.randn(rows, 3, size, size, device=device))

    def reconstruct(rows: int) -> Tensor:
        images = torch.randn(rows, 3, size, size, device=device)
        output, _, commitment = vqgan(images)
        vqgan.quantizer.passes.clear()
        return F.l1_loss(output.float(), images) + commitment + clip.embed(output.float()).square().mean()

    return _per_image(encode, recipe.tokens.batch_size), _training(vqgan, reconstruct, recipe.vqgan.train)


def _of_transformer(recipe: Recipe, clip: ClipEncoder) -> float:
    """Seconds of a training step for an image."""
    device, shape, config = default_device(), recipe.vqgan.model, recipe.transformer
    codebook, dim = shape.quantizer.codebook_size, clip.dim
    transformer = Transformer(config.model, codebook, shape.grid, dim).to(device)
    transformer.recompute = config.recompute

    def predict(rows: int) -> Tensor:
        codes = torch.randint(codebook, (rows, shape.grid**2), device=device)
        condition = F.normalize(torch.randn(rows, 1 + config.model.neighbours, dim, device=device), dim=-1)
        return generation_loss(transformer, codes, condition, config.sampling.steps)

    return _training(transformer, predict, config.train)


def _training(model: nn.Module, loss: Callable[[int], Tensor], train: TrainConfig) -> float:
    """Seconds of a training step for an image; the step of the optimizer is that of AdamW."""
    passes, optimizer = train.passes(), adamw([model], train.learning_rate)

    def backward(rows: int) -> None:
        with autocast(default_device(), train.precision):
            value = loss(rows)
        value.backward()  # type: ignore[no-untyped-call]

    def update() -> None:
        optimizer.step()

    of_pass = _per_image(backward, train.batch_size // passes)
    return of_pass + _seconds(update) / train.batch_size


def _per_image(call: Callable[[int], object], most: int) -> float:
    """Seconds of a call for each of its rows, in the largest batch up to `most` that is not too slow."""
    rows = min(FEW, most)
    while True:
        call(rows)
        _wait()
        began = time.perf_counter()
        call(rows)
        _wait()
        if rows == most or time.perf_counter() - began > LONGEST:
            return _seconds(partial(call, rows)) / rows
        rows = min(4 * rows, most)


def _seconds(call: Callable[[], object]) -> float:
    """Seconds of a call: the fewest of those in TIMED_SECONDS, since other work only makes it slower."""
    call()
    _wait()
    times, began = list[float](), time.perf_counter()
    while not times or time.perf_counter() - began < TIMED_SECONDS:
        start = time.perf_counter()
        call()
        _wait()
        times.append(time.perf_counter() - start)
    return min(times)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
