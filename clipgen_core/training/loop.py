"""The one training loop. Knows steps, optimizers and checkpoints; knows no model.

A task says what a batch is and which losses it has; the loop does the rest: learning rate,
precision, clipping, averaging, validation, metrics, checkpoints, resuming.

Every step draws its random numbers from (seed, step), and a batch is a function of its step,
so a run that was killed and resumed computes what an undisturbed run does.
"""

import math
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from clipgen_core.errors import ClipgenError
from clipgen_core.progress import Meter, track
from clipgen_core.schema import Frozen
from clipgen_core.storage import clear_drafts
from clipgen_core.tracking import Tracker
from clipgen_core.training.checkpoint import Checkpoints, read_state, read_training, read_weights
from clipgen_core.training.optim import (
    ExponentialAverage,
    OptimizerName,
    adamw,
    muon,
    set_learning_rate,
    warmup_cosine,
)

History = list[dict[str, float]]


class TrainConfig(Frozen):
    """How long and how fast to train. `steps` counts optimizer steps of `batch_size` pictures."""

    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    optimizer: OptimizerName = "adamw"
    warmup_share: float = Field(default=0.05, ge=0, lt=1)
    clip_norm: float = Field(default=1.0, gt=0)
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    precision: str = Field(default="bf16", pattern="^(bf16|fp32)$")
    seed: int = 0
    log_every: int = Field(default=10, gt=0)
    validate_every: int = Field(default=100, gt=0)
    checkpoint_every: int = Field(default=100, gt=0)
    keep_checkpoints: int = Field(default=2, gt=0)

    def optimizers(
        self, modules: Sequence[nn.Module], matrices: Sequence[nn.Module]
    ) -> list[torch.optim.Optimizer]:
        """AdamW for all `modules`, or Muon for the 2-D weights of `matrices` and AdamW for the rest."""
        rates = (self.learning_rate, self.betas, self.weight_decay)
        return muon(matrices, modules, *rates) if self.optimizer == "muon" else [adamw(modules, *rates)]


@dataclass(frozen=True)
class Validation:
    """Figures and pictures of a model on held-out data."""

    metrics: dict[str, float]
    images: dict[str, Image.Image] = field(default_factory=dict)


class Task(Protocol):
    """What is trained.

    model: what is saved and averaged; extras: further trained modules, saved for resuming only.
    """

    model: nn.Module
    extras: dict[str, nn.Module]
    optimizers: dict[str, list[torch.optim.Optimizer]]

    def batch(self, step: int) -> Any:
        """The data of a step: a function of the step alone. Called from another thread."""

    def losses(self, batch: Any, progress: float) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
        """Yields (name, loss, metrics); the loop steps that name's optimizers before going on."""

    def validate(self) -> Validation: ...


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A finished training: its last checkpoint, its curve and its last validation."""

    checkpoint: str
    history: History
    metrics: dict[str, float]
    images: dict[str, Image.Image]
    pictures_per_second: float


def fit(task: Task, config: TrainConfig, *, checkpoints: Checkpoints, tracker: Tracker, label: str) -> Fitted:
    """Train `task` to `config.steps`, going on from the newest whole checkpoint.

    Raises:
        ClipgenError: the loss is no longer finite; earlier checkpoints are left as they were.
    """
    average = ExponentialAverage(task.model, config.ema_decay) if config.ema_decay else None
    clear_drafts(checkpoints.url)
    begun, history = _resume(task, average, checkpoints)
    url = checkpoints.latest() or ""
    validation = Validation({})
    with track(label, config.steps, "steps", start=begun) as meter:
        for step, batch in prefetch(task.batch, begun, config.steps):
            torch.manual_seed(config.seed * 1_000_003 + step)
            figures = _train_step(task, batch, step, config)
            if average:
                average.update(task.model, step)
            done = step + 1
            meter.advance(1)
            if done % config.log_every == 0 or done == config.steps:
                history.append(_log(figures, done, meter, tracker, url))
                meter.show(loss=history[-1]["loss"])
            if done % config.validate_every == 0 or done == config.steps:
                validation = _validate(task, average, done, tracker)
                history.append({"step": done, **validation.metrics})
            if done % config.checkpoint_every == 0 or done == config.steps:
                _require_finite(figures, done, url)
                speed = meter.rate * config.batch_size
                url = _save(task, average, done, history, checkpoints, speed)
    if not validation.metrics:
        validation = _validate(task, average, config.steps, tracker)
    return Fitted(
        checkpoint=url,
        history=history,
        metrics=validation.metrics,
        images=validation.images,
        pictures_per_second=read_state(url)["pictures_per_second"],
    )


def prefetch(produce: Any, start: int, stop: int, ahead: int = 4) -> Iterator[tuple[int, Any]]:
    """(step, produce(step)) in order, computed in one thread a few steps ahead."""
    ready: queue.Queue[tuple[int, Any, BaseException | None]] = queue.Queue(ahead)
    closed = threading.Event()

    def put(item: tuple[int, Any, BaseException | None]) -> None:
        while not closed.is_set():
            try:
                return ready.put(item, timeout=0.2)
            except queue.Full:
                continue

    def work() -> None:
        for step in range(start, stop):
            if closed.is_set():
                return
            try:
                put((step, produce(step), None))
            except BaseException as error:
                return put((step, None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        for _ in range(start, stop):
            step, batch, error = ready.get()
            if error:
                raise error
            yield step, batch
    finally:
        closed.set()


def _train_step(task: Task, batch: Any, step: int, config: TrainConfig) -> dict[str, Any]:
    device = next(task.model.parameters()).device
    enabled = config.precision == "bf16"
    figures: dict[str, Any] = {}
    task.model.train()
    losses = task.losses(batch, step / config.steps)
    while True:
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled), attention_for(device):
            name, loss, metrics = next(losses, (None, None, {}))
        if name is None or loss is None:
            return figures
        optimizers = task.optimizers[name]
        warmup = max(int(config.warmup_share * config.steps), 1)
        for optimizer in optimizers:
            set_learning_rate(optimizer, warmup_cosine(step, config.steps, warmup))
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
        figures |= {f"{name}_grad_norm": norm, **metrics}
        figures.setdefault("loss", loss.detach())


@contextmanager
def attention_for(device: torch.device) -> Iterator[None]:
    """On CPUs the plain attention: its backward is several times faster than the fused one's there."""
    if device.type != "cpu":
        yield
        return
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    with sdpa_kernel(SDPBackend.MATH):
        yield


def _log(
    figures: Mapping[str, Any], done: int, meter: Meter, tracker: Tracker, last_good: str
) -> dict[str, float]:
    _require_finite(figures, done, last_good)
    row = {name: float(value) for name, value in figures.items()}
    tracker.metrics({**row, "steps_per_second": meter.rate}, step=done)
    return {"step": done, **row}


def _require_finite(figures: Mapping[str, Any], done: int, last_good: str) -> None:
    if not math.isfinite(float(figures["loss"])):
        raise ClipgenError(
            f"the loss is {float(figures['loss'])} at step {done}: lower the learning rate; "
            f"the last good checkpoint is {last_good or 'none yet'}"
        )


def _validate(task: Task, average: ExponentialAverage | None, done: int, tracker: Tracker) -> Validation:
    task.model.eval()
    with averaged_weights(task.model, average), torch.no_grad():
        validation = task.validate()
    tracker.metrics(validation.metrics, step=done)
    for name, image in validation.images.items():
        tracker.image(f"{name}-{done:06d}", image)
    return validation


@contextmanager
def averaged_weights(model: nn.Module, average: ExponentialAverage | None) -> Iterator[None]:
    """The model with its averaged weights, for the length of a `with`."""
    if average is None:
        yield
        return
    own = {k: v.detach().clone() for k, v in model.state_dict().items()}
    model.load_state_dict(average.state)
    try:
        yield
    finally:
        model.load_state_dict(own)


def _save(
    task: Task,
    average: ExponentialAverage | None,
    done: int,
    history: History,
    checkpoints: Checkpoints,
    speed: float,
) -> str:
    own = task.model.state_dict()
    training = {
        "model": own,
        "extras": {name: module.state_dict() for name, module in task.extras.items()},
        "optimizers": {n: [o.state_dict() for o in os] for n, os in task.optimizers.items()},
    }
    weights = average.state if average else own
    state = {"history": history, "pictures_per_second": speed}
    return checkpoints.save(done, weights, training, state)


def _resume(task: Task, average: ExponentialAverage | None, checkpoints: Checkpoints) -> tuple[int, History]:
    latest = checkpoints.latest()
    if latest is None:
        return 0, []
    training, state = read_training(latest), read_state(latest)
    task.model.load_state_dict(training["model"])
    for name, module in task.extras.items():
        module.load_state_dict(training["extras"][name])
    for name, optimizers in task.optimizers.items():
        for optimizer, saved in zip(optimizers, training["optimizers"][name], strict=True):
            optimizer.load_state_dict(saved)
    if average:
        average.state = {k: v.to(average.state[k].device) for k, v in read_weights(latest).items()}
    return int(state["step"]), list(state["history"])
