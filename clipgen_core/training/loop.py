"""The one training loop. Knows steps, optimizers and checkpoints; knows no model.

A task says what a batch is and which losses it has; the loop does the rest: learning rate,
precision, accumulation, clipping, averaging, several processes, validation, metrics, checkpoints,
resuming, stopping.

Every step draws its random numbers from (seed, step), and a batch is a function of its step,
so a run that was killed and resumed computes what an undisturbed run does.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from clipgen_core import logs
from clipgen_core.data.order import Share
from clipgen_core.data.prefetch import prefetch
from clipgen_core.device import resolved
from clipgen_core.errors import ClipgenError
from clipgen_core.filesystem import clear_drafts
from clipgen_core.progress import Meter, track
from clipgen_core.settings.training import Precision, TrainConfig
from clipgen_core.tracking import NullTracker, Tracker
from clipgen_core.training import distributed
from clipgen_core.training.checkpoint import Checkpoint, Checkpoints, Resume, Saved
from clipgen_core.training.interrupt import Interrupted, stop_signals
from clipgen_core.training.optim import ExponentialAverage, averaged_weights
from clipgen_core.training.provenance import GOAL, TrainingState
from clipgen_core.training.task import Metrics, Task, Validation, train_step


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A finished training, as its checkpoints tell it.

    checkpoint: the URL of the one to use: the best where `patience` ends trainings, else the last.
    history: rows of metrics, each with its step.
    metrics, images: of the validation of that checkpoint.
    precision: of the matrix products; None where a checkpoint of version 0.1 ended the training.
    """

    checkpoint: str
    history: list[dict[str, float]]
    metrics: dict[str, float]
    images: dict[str, Image.Image]
    images_per_second: float
    precision: Precision | None


def fit(
    make_task: Callable[[], Task],
    config: TrainConfig,
    *,
    checkpoints: Checkpoints,
    tracker: Tracker,
    label: str,
) -> Fitted:
    """Train to `config.steps`, going on from the newest whole checkpoint.

    A training that is finished already, here or by other processes, is only read: no task is made for it.

    Args:
        make_task: Makes what is trained: models and data.
        config: How long and how fast.
        checkpoints: Where they are saved, and found again.
        tracker: Gets metrics and images; of several processes, the first one's only.
        label: What progress and messages call the training.

    Returns:
        The finished training.

    Raises:
        ClipgenError: A loss, a gradient or a weight is not finite; earlier checkpoints are left as they were.
        Interrupted: A stop was requested, by SIGTERM or Ctrl-C; a checkpoint was saved.
    """
    if distributed.rank() == 0:
        clear_drafts(checkpoints.url)
    distributed.wait_for_all()
    newest = checkpoints.latest()
    if distributed.rank() == 0:
        _say_how_far(checkpoints, config, label)
    if newest is None or not newest.state.finished(config):
        task = make_task()
        _spread(task, config)
        config = config.model_copy(update={"precision": _precision(task, config, newest)})
        run = _Run(task, config, checkpoints, tracker if distributed.rank() == 0 else NullTracker())
        run.tracker.tags({"precision": config.precision})
        if newest:
            run.resume(newest)
        elif checkpoints.provenance.started_from:
            run.validate()  # how good the weights are that it starts from
            run.save(0.0)
        _train(run, label)
    return read_finished(checkpoints, config)


def _say_how_far(checkpoints: Checkpoints, config: TrainConfig, label: str) -> None:
    """Log that a training goes on, or is finished; nothing of a new one."""
    newest, used = checkpoints.latest(), checkpoints.to_use(config.patience)
    if newest is None or used is None:
        return
    step = newest.state.step
    if newest.state.finished(config):
        logs.line(f"the training of the {label} is finished ({step} steps): checkpoint {used.url}")
    else:
        logs.line(f"the training of the {label} goes on at step {step} of {config.steps}")


def read_finished(checkpoints: Checkpoints, config: TrainConfig) -> Fitted:
    """What a finished training left in its checkpoints.

    Args:
        checkpoints: Of the training; at least one is there.
        config: Tells whether the best or the last one is to be used.

    Returns:
        The finished training.
    """
    newest, used = checkpoints.latest(), checkpoints.to_use(config.patience)
    if newest is None or used is None:
        raise ClipgenError(f"{checkpoints.url} has no checkpoint: train first")
    state = newest.state
    row = next((row for row in reversed(state.validations) if row["step"] == used.state.step), {})
    return Fitted(
        checkpoint=used.url,
        history=list(state.history),
        metrics={name: value for name, value in row.items() if name != "step"},
        images=used.images(),
        images_per_second=state.images_per_second,
        precision=state.precision,
    )


def _train(run: "_Run", label: str) -> None:
    config, shown = run.config, distributed.rank() == 0
    with track(label, config.steps, "steps", start=run.done, shown=shown) as meter, stop_signals() as request:
        for step, batches in prefetch(run.batches, run.done, config.steps):
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
            if planned and run.state.finished(config):
                break
            if stop_requested:
                raise Interrupted(
                    f"{label} was asked to stop at step {run.done} and saved {run.url}: run it again to go on"
                )


class _Run:
    """One call of `fit`: what it has reached so far."""

    def __init__(self, task: Task, config: TrainConfig, checkpoints: Checkpoints, tracker: Tracker) -> None:
        self.task, self.config, self.checkpoints, self.tracker = task, config, checkpoints, tracker
        self.average = ExponentialAverage(task.model, config.ema_decay) if config.ema_decay else None
        self.optimizers = task.optimizers()
        self.done, self.url, self.history = 0, "", list[dict[str, float]]()
        self.recent: list[Metrics] = []
        self.validation = Validation({})

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint: weights, their average, optimizers, step and history."""
        self.url, saved = checkpoint.url, checkpoint.resume()
        if self.average:
            distributed.load_module(self.task.model, checkpoint.weights())
            self.average.restart(self.task.model)
        distributed.load_module(self.task.model, saved["model"])
        for name, module in self.task.extras.items():
            distributed.load_module(module, saved["extras"][name])
        for name, optimizers in self.optimizers.items():
            for optimizer, own in zip(optimizers, saved["optimizers"][name], strict=True):
                distributed.load_optimizer(optimizer, own)
        self.done, self.history = checkpoint.state.step, list(checkpoint.state.history)

    @property
    def state(self) -> TrainingState:
        return TrainingState(step=self.done, history=self.history)

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
        """Put down the newest figures; all figures since the last time must be finite."""
        rows = self.recent
        faults = (
            f"the {name.replace('_', ' ')} is {float(value)} at step {step}"
            for step, row in enumerate(rows, self.done - len(rows) + 1)
            for name, value in row.items()
            if not math.isfinite(float(value))
        )
        self._refuse(next(faults, ""))
        if rows:
            figures = distributed.mean(rows[-1])
            self.tracker.metrics({**figures, "steps_per_second": meter.rate}, step=self.done)
            self.history.append({"step": self.done, **figures})
            rows.clear()
        return self.history[-1]["loss"]

    def _refuse(self, fault: str) -> None:
        """Stop the training in all processes if there is a fault in any of them."""
        if distributed.agreed(lambda: bool(fault), at=True):
            last = f"the last good checkpoint is {self.url}" if self.url else "no checkpoint was saved yet"
            fault = fault or "another process met a value that is not finite"
            raise ClipgenError(f"{fault}: lower the learning rate; {last}")

    def validate(self) -> None:
        self.task.model.eval()
        with averaged_weights(self.task.model, self.average), torch.no_grad():
            self.validation = self.task.validate()
        loss = self.validation.metrics[GOAL]
        self._refuse("" if math.isfinite(loss) else f"the validation loss is {loss} at step {self.done}")
        self.history.append({"step": self.done, **self.validation.metrics})
        self.tracker.metrics(self.validation.metrics, step=self.done)
        for name, image in self.validation.images.items():
            self.tracker.image(f"{name}-{self.done:06d}", image)

    def save(self, speed: float) -> None:
        """Publish a checkpoint, with the images of its validation where it has just been validated."""
        task = self.task
        own = distributed.gather(task.model.state_dict())
        resume = Resume(
            model=own,
            extras={name: module.state_dict() for name, module in task.extras.items()},
            optimizers={
                name: [distributed.gather(o.state_dict()) for o in optimizers]
                for name, optimizers in self.optimizers.items()
            },
        )
        averaged = [distributed.gather(self.average.state)] if self.average else []
        states = [own, *averaged, *resume["extras"].values()]
        broken = [key for state in states for key, value in state.items() if not value.isfinite().all()]
        self._refuse(f"the weights {broken[0]} are not finite at step {self.done}" if broken else "")
        state = TrainingState(
            step=self.done,
            history=self.history,
            images_per_second=speed,
            precision=self.config.precision,
        )
        if distributed.rank() == 0:
            weights = averaged[0] if averaged else own
            saved = Saved(weights=weights, state=state, resume=resume, images=self.validation.images)
            self.checkpoints.save(saved)
        distributed.wait_for_all()
        self.url, self.validation = self.checkpoints.at(self.done), Validation({})


def _precision(task: Task, config: TrainConfig, newest: Checkpoint | None) -> Precision:
    """The type of matrix products: what the training began with, unless the config names one."""
    if config.precision == "auto" and newest and newest.state.precision:
        return newest.state.precision
    device = next(task.model.parameters()).device.type
    own = resolved(config.precision, device) == "bf16"
    return "bf16" if distributed.mean({"bf16": float(own)})["bf16"] == 1 else "fp32"


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
