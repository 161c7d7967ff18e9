"""The interface between the training loop and what it trains, and one training step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from clipgen_core.data.order import Share
from clipgen_core.device import autocast
from clipgen_core.settings.training import TrainConfig
from clipgen_core.training import distributed
from clipgen_core.training.optim import set_learning_rate, warmup_cosine

Optimizers = dict[str, list[torch.optim.Optimizer]]
Metrics = dict[str, Tensor | float]


@dataclass(frozen=True)
class Validation:
    """The metrics of a model on held-out images, `validation_loss` among them, and sample images by name."""

    metrics: dict[str, float]
    images: dict[str, Image.Image] = field(default_factory=dict)


class Task(Protocol):
    """A model with its data, losses and optimizers.

    Attributes:
        model: The model, which is saved and averaged.
        extras: Further trained modules by name, such as a discriminator; saved for resuming only.
    """

    model: nn.Module
    extras: dict[str, nn.Module]

    def optimizers(self) -> Optimizers:
        """The optimizers by the name of their loss; called after the model is parallelised."""

    def batch(self, step: int, share: Share) -> Any:
        """Load a batch. The loop calls this from another thread, and moves the batch to the model's device.

        Args:
            step: The step, on which alone the data of all shares together depends.
            share: The share of the step's batch to load.

        Returns:
            Whatever `losses` takes: tensors on the CPU, in tuples, lists and dataclasses. Images stay uint8.
        """

    def losses(self, batch: Any, progress: float) -> Iterator[tuple[str, Tensor, Metrics]]:
        """Compute the losses of a batch, one after the other.

        Args:
            batch: What `batch` returned, on the model's device.
            progress: Share of the training's steps that is done, in [0, 1).

        Yields:
            The loss's name, its value and metrics to log, which stay tensors: to read one, the CPU would wait
            for the device. The loop steps the optimizers of that name before it asks for the next loss.
        """

    def after_step(self, step: int) -> Metrics:
        """Update what no optimizer updates, once after all optimizers have stepped.

        Args:
            step: The step, from 0.

        Returns:
            Metrics to log.
        """

    def validate(self) -> Validation:
        """Evaluate the model on held-out images."""


def train_step(
    task: Task, optimizers: Optimizers, batches: list[Any], step: int, config: TrainConfig
) -> Metrics:
    """Accumulate the gradients of each loss over the batches, then step its optimizers.

    Args:
        task: What is trained.
        optimizers: As `task.optimizers()` returned them.
        batches: The batches of this process, on the model's device.
        step: The step, from 0.
        config: `steps`, `precision`, `warmup_share` and `clip_norm` are used.

    Returns:
        Metrics averaged over the batches: the first loss as `loss`, those that the losses came with, and the
        norm of each loss's gradient before clipping; and those of `task.after_step`.
    """
    running = [task.losses(batch, step / config.steps) for batch in batches]
    metrics: Metrics = {}
    first, device = next(iter(optimizers)), next(task.model.parameters()).device
    while True:
        for i, losses in enumerate(running):
            distributed.synchronise(task.model, enabled=i == len(running) - 1)
            with (
                autocast(device, config.precision),
                attention_for(device),
            ):
                result = next(losses, None)
            if result is None:
                return metrics | task.after_step(step)
            name, loss, logged = result
            if i == 0:
                for optimizer in optimizers[name]:
                    optimizer.zero_grad(set_to_none=True)
            (loss / len(running)).backward()
            if name == first:
                logged = {"loss": loss.detach(), **logged}
            for key, value in logged.items():
                metrics[key] = metrics.get(key, 0) + value / len(running)
        metrics[f"{name}_grad_norm"] = _step(optimizers[name], step, config)


def _step(optimizers: list[torch.optim.Optimizer], step: int, config: TrainConfig) -> Tensor:
    warmup = max(int(config.warmup_share * config.steps), 1)
    parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, config.clip_norm)
    for optimizer in optimizers:
        set_learning_rate(optimizer, warmup_cosine(step, config.steps, warmup))
        optimizer.step()
    return norm


def validation_autocast(device: str | torch.device, config: TrainConfig) -> torch.autocast:
    """The autocast context for validation: GPUs validate in the precision in which they train.

    CPUs validate in fp32, as they always did, so that the losses of a resumed training can be compared;
    except where FSDP gives a model its weights in bf16.

    Args:
        device: The device.
        config: `precision` and `parallel` are used.

    Returns:
        A context manager, to enter once.
    """
    as_trained = torch.device(device).type != "cpu" or distributed.sharded(config.parallel)
    return autocast(device, config.precision if as_trained else "fp32")


@contextmanager
def attention_for(device: torch.device) -> Iterator[None]:
    """Use PyTorch's unfused attention on CPUs, where its backward pass is several times faster."""
    if device.type != "cpu":
        yield
        return
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    with sdpa_kernel(SDPBackend.MATH):
        yield
