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
LONGEST = 0.5  # seconds; a second batch that takes longer is large enough
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
            embed=_seconds_of(embed, ENOUGH, ENOUGH) / ENOUGH / gain,
            encode=_seconds_of(partial(_encode, vqgan.vqgan), ENOUGH, ENOUGH) / ENOUGH / gain,
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
    optimizers = task.optimizers()
    task.model.train()

    def step(number: int, rows: int) -> None:
        train_step(task, optimizers, [moved(task.few(rows), default_device())], number, train)

    batch, at_once = train.batch_size, train.batch_size // train.passes()
    early = _seconds_of(partial(step, 0), batch, at_once) if changes else 0.0
    late = _seconds_of(partial(step, train.steps - 1), batch, at_once) if changes < 1 else 0.0
    return (changes * early + (1 - changes) * late) / batch


def _seconds_of(call: Callable[[int], object], rows: int, most: int) -> float:
    """Seconds of a call with `rows` rows, by a line through the times of two batches of at most `most` rows.

    A line, because a part of a training step, such as the optimizer, takes the same time with any batch.

    Args:
        call: Is given the number of rows.
        rows: How many rows the call would have.
        most: The largest batch that may be tried.

    Returns:
        The seconds.
    """
    few, before = 0, 0.0
    many = min(FEW, most)
    now = _seconds(partial(call, many))
    while many < most and (now <= LONGEST or not few):
        few, before = many, now
        many = min(many * (8 if now <= LONGEST else 2), most)
        now = _seconds(partial(call, many))
    each = max(0.0, now - before) / (many - few)
    return now + each * (rows - many)


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
