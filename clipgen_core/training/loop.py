"""The one training loop. Knows steps, optimizers and checkpoints; knows no model.

A task says what a batch is and which losses it has; the loop does the rest: learning rate,
precision, accumulation, clipping, averaging, several processes, validation, metrics, checkpoints,
resuming, stopping.

Every step draws its random numbers from (seed, step), and a batch is a function of its step,
so a run that was killed and resumed computes what an undisturbed run does.
"""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from clipgen_core import logs
from clipgen_core.data.order import Share
from clipgen_core.data.prefetch import prefetch
from clipgen_core.data.transfer import Moving, Transfer
from clipgen_core.device import fp32_products, resolved
from clipgen_core.errors import ClipgenError, Interrupted
from clipgen_core.filesystem import clear_drafts
from clipgen_core.progress import Meter, track
from clipgen_core.settings.training import Precision, TrainConfig
from clipgen_core.tracking import NullTracker, Tracker
from clipgen_core.training import distributed
from clipgen_core.training.checkpoint import Checkpoint, Checkpoints, Saved
from clipgen_core.training.compiling import compile_model
from clipgen_core.training.finished import Fitted, read_finished, say_how_far
from clipgen_core.training.interrupt import stop_signals
from clipgen_core.training.learned import Learned
from clipgen_core.training.optim import averaged_weights
from clipgen_core.training.provenance import GOAL, TrainingState
from clipgen_core.training.publisher import Publisher
from clipgen_core.training.task import Metrics, Task, Validation, train_step

__all__ = ["Fitted", "fit", "read_finished"]


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
    newest = distributed.of_first(checkpoints.latest())
    if distributed.rank() == 0:
        say_how_far(checkpoints, config, label)
    if newest is None or not newest.state.finished(config):
        task = make_task()
        config = config.model_copy(update={"precision": _precision(task, config, newest)})
        _spread(task, config)
        run = _Run(task, config, checkpoints, tracker if distributed.rank() == 0 else NullTracker())
        run.tracker.tags({"precision": config.precision})
        with fp32_products(run.device, "high"), run.publisher:
            if newest:
                run.resume(newest)
            elif checkpoints.provenance.started_from:
                run.validate()  # how good the weights are that it starts from
                run.save(0.0)
            _train(run, label)
    return read_finished(checkpoints, config)


def _train(run: "_Run", label: str) -> None:
    config, shown = run.config, distributed.rank() == 0
    with track(label, config.steps, "steps", start=run.done, shown=shown) as meter, stop_signals() as request:
        for step, batches in prefetch(run.batches, run.done, config.steps):
            began = time.perf_counter()
            run.train(step, batches)
            if meter.done == meter.first:
                run.report_first_step(label, began)
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
                run.require_published()
                raise Interrupted(
                    f"{label} was asked to stop at step {run.done} and saved {run.url}: run it again to go on"
                )
        run.require_published()


class _Run:
    """One call of `fit`: what it has reached so far."""

    def __init__(self, task: Task, config: TrainConfig, checkpoints: Checkpoints, tracker: Tracker) -> None:
        self.task, self.config, self.checkpoints, self.tracker = task, config, checkpoints, tracker
        self.device = next(task.model.parameters()).device
        self.transfer, self.publisher = Transfer(self.device), Publisher(checkpoints)
        self.learned = Learned(task, config.ema_decay)
        self.done, self.url, self.history = 0, "", list[dict[str, float]]()
        self.recent: list[Metrics] = []
        self.validation = Validation({})

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint: weights, their average, optimizers, step and history. The tracker gets the
        history again: a process that was killed had maybe not sent all of it."""
        self.learned.load(checkpoint)
        self.url, self.done = checkpoint.url, checkpoint.state.step
        self.history = list(checkpoint.state.history)
        for row in self.history:
            figures = {name: value for name, value in row.items() if name != "step"}
            self.tracker.metrics(figures, step=int(row["step"]))

    @property
    def state(self) -> TrainingState:
        return TrainingState(step=self.done, history=self.history)

    def batches(self, step: int) -> list[Moving]:
        """This process's part of a step's batch, one entry a backward pass, on its way to the device."""
        processes = distributed.world_size()
        passes = self.config.passes(processes)
        first = distributed.rank() * passes
        shares = [Share(first + i, processes * passes) for i in range(passes)]
        return [self.transfer.begin(self.task.batch(step, share)) for share in shares]

    def train(self, step: int, batches: list[Moving]) -> None:
        """One step of every optimizer."""
        moved = [self.transfer.end(batch) for batch in batches]
        torch.manual_seed((self.config.seed * 1_000_003 + step) * 1_009 + distributed.rank())
        self.task.model.train()
        self.recent.append(train_step(self.task, self.learned.optimizers, moved, step, self.config))
        if self.learned.average:
            self.learned.average.update(self.task.model, step)
        self.done = step + 1

    def report_first_step(self, label: str, began: float) -> None:
        """Say how long the first step took, in which models are compiled.

        Args:
            label: What messages call the training.
            began: When the step began, by `time.perf_counter`.
        """
        distributed.numbers(self.recent)  # waits for the device
        seconds = time.perf_counter() - began
        self.tracker.metrics({"first_step_seconds": seconds}, step=self.done)
        if self.config.compile and distributed.rank() == 0:
            logs.line(f"the {label} is compiled: its first step took {seconds:.0f} s")

    def log(self, meter: Meter) -> float:
        """Put down the newest figures; all figures since the last time must be finite."""
        self.require_published(wait=False)
        rows = distributed.numbers(self.recent)
        faults = (
            f"the {name.replace('_', ' ')} is {value} at step {step}"
            for step, row in enumerate(rows, self.done - len(rows) + 1)
            for name, value in row.items()
            if not math.isfinite(value)
        )
        self._refuse(next(faults, ""))
        if rows:
            figures = distributed.mean(rows[-1])
            self.tracker.metrics({**figures, "steps_per_second": meter.rate}, step=self.done)
            self.history.append({"step": self.done, **figures})
            self.recent.clear()
        return self.history[-1]["loss"]

    def _refuse(self, fault: str) -> None:
        """Stop the training in all processes if there is a fault in any of them."""
        if distributed.agreed(lambda: bool(fault), at=True):
            last = f"the last good checkpoint is {self.url}" if self.url else "no checkpoint was saved yet"
            fault = fault or "another process met a value that is not finite"
            raise ClipgenError(f"{fault}: lower the learning rate; {last}")

    def validate(self) -> None:
        """Validate in all processes; the figures of the first one count, so that all end at the same time."""
        self.task.model.eval()
        with averaged_weights(self.task.model, self.learned.average), torch.no_grad(), self._uncompiled():
            validation = self.task.validate()
        metrics = distributed.of_first(validation.metrics)
        self.validation, loss = Validation(metrics, validation.images), metrics[GOAL]
        self._refuse("" if math.isfinite(loss) else f"the validation loss is {loss} at step {self.done}")
        self.history.append({"step": self.done, **metrics})
        self.tracker.metrics(metrics, step=self.done)
        for name, image in self.validation.images.items():
            self.tracker.image(f"{name}-{self.done:06d}", image)

    def _uncompiled(self) -> AbstractContextManager[Any]:
        """Run models without `torch.compile`: each batch size of the validation would get its own graph."""
        return torch.compiler.set_stance("force_eager") if self.config.compile else nullcontext()

    def save(self, speed: float) -> None:
        """Publish a checkpoint in the background, with the images of its validation where it has just been
        validated. All weights must be finite."""
        self.require_published()
        broken = self.learned.not_finite()
        self._refuse(f"the weights {broken[0]} are not finite at step {self.done}" if broken else "")
        state = TrainingState(
            step=self.done,
            history=list(self.history),
            images_per_second=speed,
            precision=self.config.precision,
        )
        weights, resume = self.learned.collect()
        saved = Saved(weights=weights, state=state, resume=resume, images=self.validation.images)
        if distributed.rank() == 0:
            self.publisher.start(saved)
        self.url, self.validation = self.checkpoints.at(self.done), Validation({})

    def require_published(self, wait: bool = True) -> None:
        """Raise in all processes what went wrong in publishing a checkpoint.

        Args:
            wait: Until the newest one is published; else only what is known already is raised.
        """
        if wait:
            self.publisher.wait()
        error = self.publisher.error
        if distributed.agreed(lambda: error is not None, at=True):
            raise error or ClipgenError("the first process could not save a checkpoint: see its message")


def _precision(task: Task, config: TrainConfig, newest: Checkpoint | None) -> Precision:
    """The type of matrix products: what the training began with, unless the config names one."""
    if config.precision == "auto" and newest and newest.state.precision:
        return newest.state.precision
    own = resolved(config.precision, next(task.model.parameters()).device) == "bf16"
    return "bf16" if distributed.mean({"bf16": float(own)})["bf16"] == 1 else "fp32"


def _spread(task: Task, config: TrainConfig) -> None:
    config.passes(distributed.world_size())  # which divide
    distributed.spread(task.model, config.parallel, config.precision)
    for module in task.extras.values():
        distributed.spread(module, "ddp")
    if config.compile:
        compile_model(task.model)
