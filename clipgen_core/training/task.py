"""What the loop asks of whatever it trains, and one step of it."""

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


@dataclass(frozen=True)
class Validation:
    """Figures and pictures of a model on held-out data; `validation_loss` tells better from worse."""

    metrics: dict[str, float]
    images: dict[str, Image.Image] = field(default_factory=dict)


class Task(Protocol):
    """What is trained.

    model: what is saved and averaged; extras: further trained modules, saved for resuming only.
    """

    model: nn.Module
    extras: dict[str, nn.Module]

    def optimizers(self) -> Optimizers:
        """By the name of the loss; made after the model was spread over processes."""

    def batch(self, step: int, share: Share) -> Any:
        """A share of a step's data: a function of the step alone. Called from another thread."""

    def losses(self, batch: Any, progress: float) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
        """Yields (name, loss, metrics); the loop steps that name's optimizers before going on."""

    def validate(self) -> Validation: ...


def train_step(
    task: Task, optimizers: Optimizers, batches: list[Any], step: int, config: TrainConfig
) -> dict[str, Any]:
    """Accumulate each loss's gradients over the batches, then step its optimizers; returns the figures."""
    running = [task.losses(batch, step / config.steps) for batch in batches]
    figures: dict[str, Any] = {}
    first, device = next(iter(optimizers)), next(task.model.parameters()).device
    while True:
        for i, losses in enumerate(running):
            distributed.synchronise(task.model, wanted=i == len(running) - 1)
            with (
                autocast(device.type, config.precision),
                attention_for(device),
            ):
                found = next(losses, None)
            if found is None:
                return figures
            name, loss, metrics = found
            if i == 0:
                for optimizer in optimizers[name]:
                    optimizer.zero_grad(set_to_none=True)
            (loss / len(running)).backward()
            shown = {"loss": loss.detach(), **metrics} if name == first else metrics
            for key, value in shown.items():
                figures[key] = figures.get(key, 0) + value / len(running)
        figures[f"{name}_grad_norm"] = _step(optimizers[name], step, config)


def _step(optimizers: list[torch.optim.Optimizer], step: int, config: TrainConfig) -> Tensor:
    warmup = max(int(config.warmup_share * config.steps), 1)
    parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, config.clip_norm)
    for optimizer in optimizers:
        set_learning_rate(optimizer, warmup_cosine(step, config.steps, warmup))
        optimizer.step()
    return norm


@contextmanager
def attention_for(device: torch.device) -> Iterator[None]:
    """On CPUs the plain attention: its backward is several times faster than the fused one's there."""
    if device.type != "cpu":
        yield
        return
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    with sdpa_kernel(SDPBackend.MATH):
        yield
