"""What a training has learned so far: weights, their average and the state of the optimizers, in one or
several processes. Loads it from a checkpoint and copies it for one; knows no steps and no files.
"""

from collections.abc import Mapping

from torch import Tensor

from clipgen_core.training import distributed
from clipgen_core.training.checkpoint import Checkpoint, Resume
from clipgen_core.training.optim import ExponentialAverage
from clipgen_core.training.task import Task


class Learned:
    """The trained state of a task.

    Args:
        task: What is trained, parallelised already.
        ema_decay: Decay of the average of the weights; 0: none is kept.
    """

    def __init__(self, task: Task, ema_decay: float) -> None:
        self.task = task
        self.average = ExponentialAverage(task.model, ema_decay) if ema_decay else None
        self.optimizers = task.optimizers()

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        saved = checkpoint.resume()
        if self.average:
            distributed.load_module(self.task.model, checkpoint.weights())
            self.average.restart(self.task.model)
        distributed.load_module(self.task.model, saved["model"])
        for name, module in self.task.extras.items():
            distributed.load_module(module, saved["extras"][name])
        for name, optimizers in self.optimizers.items():
            for optimizer, own in zip(optimizers, saved["optimizers"][name], strict=True):
                distributed.load_optimizer(optimizer, own)

    def not_finite(self) -> list[str]:
        """The names of weights that are not finite, as far as this process has them."""
        average = [self.average.state] if self.average else []
        extras = [module.state_dict() for module in self.task.extras.values()]
        return distributed.not_finite([self.task.model.state_dict(), *average, *extras])

    def collect(self) -> tuple[Mapping[str, Tensor], Resume]:
        """Copies in the first process's memory; every process must call this.

        Returns:
            The weights to use, and what resuming needs.
        """
        resume = Resume(
            model=distributed.collect(self.task.model.state_dict()),
            extras={name: distributed.collect(m.state_dict()) for name, m in self.task.extras.items()},
            optimizers={
                name: [distributed.collect(one.state_dict()) for one in optimizers]
                for name, optimizers in self.optimizers.items()
            },
        )
        return distributed.collect(self.average.state) if self.average else resume["model"], resume
