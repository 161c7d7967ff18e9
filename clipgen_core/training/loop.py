"""The one training loop. Knows steps, optimizers and checkpoints; knows no model.

A task says what a batch is and which losses it has; the loop does the rest: learning rate,
precision, accumulation, clipping, averaging, several processes, validation, metrics, checkpoints,
resuming, stopping.

Every step draws its random numbers from (seed, step), and a batch is a function of its step,
so a run that was killed and resumed computes what an undisturbed run does.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import nn

from clipgen_core.data.order import Share
from clipgen_core.data.prefetch import prefetch
from clipgen_core.errors import ClipgenError
from clipgen_core.progress import Meter, track
from clipgen_core.settings.training import TrainConfig
from clipgen_core.storage import clear_drafts
from clipgen_core.tracking import NullTracker, Tracker
from clipgen_core.training import distributed
from clipgen_core.training.checkpoint import Checkpoints, read_state, read_training, read_weights
from clipgen_core.training.interrupt import Interrupted, sigterm
from clipgen_core.training.optim import ExponentialAverage
from clipgen_core.training.task import GOAL, Task, Validation, train_step

History = list[dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A finished training: the checkpoint to use, its curve and its last validation."""

    checkpoint: str
    history: History
    metrics: dict[str, float]
    images: dict[str, Image.Image]
    pictures_per_second: float


def fit(task: Task, config: TrainConfig, *, checkpoints: Checkpoints, tracker: Tracker, label: str) -> Fitted:
    """Train `task` to `config.steps`, going on from the newest whole checkpoint.

    Raises:
        ClipgenError: a loss is not finite; earlier checkpoints are left as they were.
        Interrupted: somebody asked to stop, by SIGTERM for one; a checkpoint was saved.
    """
    _spread(task, config)
    run = _Run(task, config, checkpoints, tracker if distributed.rank() == 0 else NullTracker())
    run.resume()
    shown = distributed.rank() == 0
    with track(label, config.steps, "steps", start=run.done, shown=shown) as meter, sigterm() as request:
        for step, batches in prefetch(run.batches, run.done, run.stop):
            run.train(step, batches)
            meter.advance(1)
            logging = run.done % config.log_every == 0
            stop_requested = distributed.agreed(request.stop_requested, at=logging)
            planned = run.done % config.checkpoint_every == 0 or run.done == config.steps
            if logging or planned or stop_requested:
                meter.show(loss=run.log(meter))
            if planned:
                run.validate()
            if planned or stop_requested:
                run.save(meter.rate * config.batch_size)
            if run.finished:
                break
            if stop_requested:
                raise Interrupted(
                    f"{label} was asked to stop at step {run.done} and saved {run.url}: run it again to go on"
                )
    return run.result()


class _Run:
    """One call of `fit`: what it has reached so far."""

    def __init__(self, task: Task, config: TrainConfig, checkpoints: Checkpoints, tracker: Tracker) -> None:
        self.task, self.config, self.checkpoints, self.tracker = task, config, checkpoints, tracker
        self.average = ExponentialAverage(task.model, config.ema_decay) if config.ema_decay else None
        self.optimizers = task.optimizers()
        self.done, self.url, self.history = 0, "", list[dict[str, float]]()
        self.recent: list[dict[str, Any]] = []
        self.finished = False
        self.validation = Validation({})

    def resume(self) -> None:
        if distributed.rank() == 0:
            clear_drafts(self.checkpoints.url)
        distributed.wait_for_all()
        self.url = self.checkpoints.latest() or ""
        if not self.url:
            return
        training, state = read_training(self.url), read_state(self.url)
        if self.average:
            distributed.load_module(self.task.model, read_weights(self.url))
            self.average.restart(self.task.model)
        distributed.load_module(self.task.model, training["model"])
        for name, module in self.task.extras.items():
            distributed.load_module(module, training["extras"][name])
        for name, optimizers in self.optimizers.items():
            for optimizer, saved in zip(optimizers, training["optimizers"][name], strict=True):
                distributed.load_optimizer(optimizer, saved)
        self.done, self.history = int(state["step"]), list(state["history"])
        self.finished = self.done >= self.config.steps or self.stale

    @property
    def stop(self) -> int:
        return self.done if self.finished else self.config.steps

    def batches(self, step: int) -> list[Any]:
        """This process's part of a step's batch, one entry a backward pass."""
        config, parts = self.config, distributed.world_size() * self.config.accumulate
        first = distributed.rank() * config.accumulate
        return [self.task.batch(step, Share(first + i, parts)) for i in range(config.accumulate)]

    def train(self, step: int, batches: list[Any]) -> None:
        """One step of every optimizer."""
        torch.manual_seed((self.config.seed * 1_000_003 + step) * 1_009 + distributed.rank())
        self.task.model.train()
        self.recent.append(train_step(self.task, self.optimizers, batches, step, self.config))
        if self.average:
            self.average.update(self.task.model, step)
        self.done = step + 1

    def log(self, meter: Meter) -> float:
        """Put down the newest figures; every loss since the last time must be finite."""
        rows = self.recent
        for step, row in enumerate(rows, self.done - len(rows) + 1):
            if not math.isfinite(float(row["loss"])):
                raise ClipgenError(
                    f"the loss is {float(row['loss'])} at step {step}: lower the learning rate; "
                    f"the last good checkpoint is {self.url or 'none yet'}"
                )
        if rows:
            figures = distributed.mean(rows[-1])
            self.tracker.metrics({**figures, "steps_per_second": meter.rate}, step=self.done)
            self.history.append({"step": self.done, **figures})
            rows.clear()
        return self.history[-1]["loss"]

    def validate(self) -> None:
        self.task.model.eval()
        with averaged_weights(self.task.model, self.average), torch.no_grad():
            self.validation = self.task.validate()
        self.history.append({"step": self.done, **self.validation.metrics})
        self.tracker.metrics(self.validation.metrics, step=self.done)
        for name, image in self.validation.images.items():
            self.tracker.image(f"{name}-{self.done:06d}", image)

    def save(self, speed: float) -> None:
        """Publish a checkpoint."""
        task = self.task
        own = distributed.gather(task.model.state_dict())
        training = {
            "model": own,
            "extras": {name: module.state_dict() for name, module in task.extras.items()},
            "optimizers": {
                name: [distributed.gather(o.state_dict()) for o in optimizers]
                for name, optimizers in self.optimizers.items()
            },
        }
        weights = distributed.gather(self.average.state) if self.average else own
        state = {"history": self.history, "pictures_per_second": speed}
        if distributed.rank() == 0:
            self.url = self.checkpoints.save(self.done, weights, training, state, best=self.best)
        distributed.wait_for_all()
        self.url = self.checkpoints.latest() or ""
        self.finished = self.done == self.config.steps or self.stale

    @property
    def best(self) -> int | None:
        """The step with the lowest validation loss so far."""
        scored = [row for row in self.history if GOAL in row]
        return int(min(scored, key=lambda row: row[GOAL])["step"]) if scored else None

    @property
    def stale(self) -> bool:
        """Whether `patience` checkpoints have brought nothing better."""
        steps = [row["step"] for row in self.history if GOAL in row]
        after_best = sum(step > (self.best or 0) for step in steps)
        return 0 < self.config.patience <= after_best

    def result(self) -> Fitted:
        if not self.validation.metrics:
            self.validate()
        best = self.best if self.config.patience else None
        metrics = self.validation.metrics
        if best:
            row = next(row for row in self.history if row["step"] == best and GOAL in row)
            metrics = {name: value for name, value in row.items() if name != "step"}
        return Fitted(
            checkpoint=self.checkpoints.at(best) if best else self.url,
            history=self.history,
            metrics=metrics,
            images=self.validation.images,
            pictures_per_second=read_state(self.url)["pictures_per_second"],
        )


def _spread(task: Task, config: TrainConfig) -> None:
    if config.batch_size % (distributed.world_size() * config.accumulate):
        raise ClipgenError(
            f"batch_size {config.batch_size} is not divisible by {distributed.world_size()} processes "
            f"x accumulate {config.accumulate}: change one"
        )
    distributed.spread(task.model, config.parallel)
    for module in task.extras.values():
        distributed.spread(module, "ddp")
    if config.compile:
        task.model.compile()


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
