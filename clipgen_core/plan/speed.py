"""Seconds an image of each model, measured on this machine with a few images."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clipgen_core.device import autocast, default_device
from clipgen_core.generation.steps import generation_loss
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.models.transformer import Transformer
from clipgen_core.models.vqgan import Vqgan
from clipgen_core.recipes import Recipe
from clipgen_core.settings.training import TrainConfig

TIMED_SECONDS = 3.0
FEW = 2  # batch size of the timings


@dataclass(frozen=True)
class Speed:
    """Seconds for an image.

    Attributes:
        embed: By the CLIP.
        encode: By the VQGAN.
        vqgan: Of a training step of the VQGAN without the discriminator.
        transformer: Of a training step of the transformer.
    """

    embed: float
    encode: float
    vqgan: float
    transformer: float


def measure(recipe: Recipe, clip: ClipEncoder) -> Speed:
    """Time each model.

    Args:
        recipe: The models.
        clip: The CLIP that embeds images and measures perceptual distance.

    Returns:
        The seconds, measured with batches of FEW.
    """

    def embed() -> None:
        with torch.no_grad(), autocast(clip.device.type):
            clip.embed(torch.randn(FEW, 3, *clip.image_size, device=clip.device))

    encode, vqgan = _of_vqgan(recipe, clip)
    return Speed(_seconds(embed) / FEW, encode, vqgan, _of_transformer(recipe, clip))


def _of_vqgan(recipe: Recipe, clip: ClipEncoder) -> tuple[float, float]:
    """(seconds of encoding an image, seconds of a training step for an image)."""
    device, size = default_device(), recipe.vqgan.model.image_size
    vqgan, images = Vqgan(recipe.vqgan.model).to(device), torch.randn(FEW, 3, size, size, device=device)
    vqgan.set_recompute(recipe.vqgan.recompute)

    def encode() -> None:
        with torch.no_grad():
            vqgan.encode(images)

    def reconstruct() -> Tensor:
        output, _, commitment = vqgan(images)
        vqgan.quantizer.passes.clear()
        return F.l1_loss(output.float(), images) + commitment + clip.embed(output.float()).square().mean()

    return _seconds(encode) / FEW, _seconds(lambda: _step(reconstruct, recipe.vqgan.train)) / FEW


def _of_transformer(recipe: Recipe, clip: ClipEncoder) -> float:
    """Seconds of a training step for an image."""
    device, shape, config = default_device(), recipe.vqgan.model, recipe.transformer
    codebook, dim = shape.quantizer.codebook_size, clip.dim
    transformer = Transformer(config.model, codebook, shape.grid, dim).to(device)
    transformer.recompute = config.recompute
    codes = torch.randint(codebook, (FEW, shape.grid**2), device=device)
    condition = F.normalize(torch.randn(FEW, 1 + config.model.neighbours, dim, device=device), dim=-1)

    def predict() -> Tensor:
        return generation_loss(transformer, codes, condition, config.sampling.steps)

    return _seconds(lambda: _step(predict, config.train)) / FEW


def _step(loss: Callable[[], Tensor], train: TrainConfig) -> None:
    with autocast(default_device(), train.precision):
        value = loss()
    value.backward()  # type: ignore[no-untyped-call]


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
