"""Seconds an image of each model, measured on this machine by steps of its training.

On CPUs one thread computes, and the time that it had on a core counts, not the clock: so other programs on
the machine change little. Threads that share their cores with other programs wait for each other: steps were
measured at up to twenty times of what they take alone.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from clipgen_core.data.transfer import moved
from clipgen_core.device import autocast, default_device, fast_dtype, fp32_products
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.models.vqgan import Vqgan
from clipgen_core.plan.tasks import ClipWithoutImages, TransformerWithoutShards, VqganWithoutImages
from clipgen_core.recipes import Recipe
from clipgen_core.settings.training import TrainConfig
from clipgen_core.training.task import train_step

TIMED_SECONDS = 0.2
FEW = 2  # images of the smallest batch
ENOUGH = 16  # images to embed or to encode at once: more are hardly faster
LONGEST = 0.5  # seconds; a batch that takes longer is large enough
GAIN = 0.6  # n threads are n ** GAIN times as fast as one: 1.5 times with two cores, as measured


@dataclass(frozen=True)
class Speed:
    """Seconds for an image.

    Attributes:
        clip: Of a training step of the recipe's own CLIP.
        embed: By the CLIP.
        encode: By the VQGAN.
        vqgan: Of a training step of the VQGAN.
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
    device, config = default_device(), recipe.vqgan
    vqgan = VqganWithoutImages(recipe, clip, device)
    transformer = TransformerWithoutShards(recipe, clip, device)
    adversarial = config.adversarial_from if config.adversarial else 1.0

    def embed(rows: int) -> None:
        clip.encode_prepared(torch.zeros(rows, 3, *clip.image_size))

    with _one_thread() as gain, fp32_products(device, "high"):
        return Speed(
            clip=_training(ClipWithoutImages(recipe, device), recipe.clip.train) / gain if own_clip else 0.0,
            embed=_per_image(embed, ENOUGH) / gain,
            encode=_per_image(partial(_encode, vqgan.vqgan), ENOUGH) / gain,
            vqgan=_training(vqgan, config.train, adversarial) / gain,
            transformer=_training(transformer, recipe.transformer.train) / gain,
        )


@contextmanager
def _one_thread() -> Iterator[float]:
    """Compute in one thread on CPUs; yields how many times as fast all threads are."""
    if torch.cuda.is_available():
        yield 1.0
        return
    fast_dtype("cpu")  # which all threads together decide
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads**GAIN
    finally:
        torch.set_num_threads(threads)


def _encode(vqgan: Vqgan, rows: int) -> None:
    size = vqgan.config.image_size
    with torch.no_grad(), autocast(default_device()):
        vqgan.encode(torch.zeros(rows, 3, size, size, device=default_device()))


def _training(
    task: VqganWithoutImages | TransformerWithoutShards | ClipWithoutImages,
    train: TrainConfig,
    changes: float = 1.0,
) -> float:
    """Seconds of a training step for an image.

    Args:
        task: The training.
        train: Its settings.
        changes: The share of the steps after which a step has more to do.

    Returns:
        The mean of all steps.
    """
    optimizers, passes = task.optimizers(), train.passes()
    task.model.train()

    def step(number: int, rows: int) -> None:
        train_step(task, optimizers, [moved(task.few(rows), default_device())], number, train)

    early = _per_image(partial(step, 0), train.batch_size // passes) if changes else 0.0
    late = _per_image(partial(step, train.steps - 1), train.batch_size // passes) if changes < 1 else 0.0
    return changes * early + (1 - changes) * late


def _per_image(call: Callable[[int], object], most: int) -> float:
    """Seconds of a call for each of its rows, in the largest batch up to `most` that is not too slow."""
    rows = min(FEW, most)
    while True:
        seconds = _seconds(partial(call, rows))
        if rows == most or seconds > LONGEST:
            return seconds / rows
        rows = min(8 * rows, most)


def _seconds(call: Callable[[], object]) -> float:
    """Seconds of a call: the fewest of those in TIMED_SECONDS, since other work only makes it slower."""
    now = time.perf_counter if torch.cuda.is_available() else time.thread_time
    call()
    _wait()
    times = list[float]()
    while not times or sum(times) < TIMED_SECONDS:
        began = now()
        call()
        _wait()
        times.append(now() - began)
    return min(times)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
