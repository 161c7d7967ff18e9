"""Optimizers, learning rate schedules and weight averaging. Knows parameters, but no model."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from clipgen_core.settings.training import TrainConfig
from clipgen_core.training.muon import Muon


def optimizers(
    config: TrainConfig, modules: Sequence[nn.Module], matrices: Sequence[nn.Module]
) -> list[torch.optim.Optimizer]:
    """The optimizers that a training's configuration names.

    Args:
        config: `optimizer`, `learning_rate`, `betas` and `weight_decay` are used.
        modules: All modules to train.
        matrices: The modules among them whose 2-D weights Muon optimizes, if `optimizer` is "muon".

    Returns:
        One AdamW for everything, or Muon for the matrices and AdamW for the rest.
    """
    rates = (config.learning_rate, config.betas, config.weight_decay)
    return muon(matrices, modules, *rates) if config.optimizer == "muon" else [adamw(modules, *rates)]


def adamw(
    modules: Iterable[nn.Module],
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float = 0.05,
) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101) with weight decay on matrices only, not on norms, biases and gains.

    Args:
        modules: The modules to train; parameters without gradients are left out.
        learning_rate: Peak learning rate, which a schedule may scale.
        betas: Decay rates of the two moments.
        weight_decay: Decay of parameters with two or more dimensions.

    Returns:
        A fused AdamW with two parameter groups.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def muon(
    matrices: Iterable[nn.Module],
    others: Iterable[nn.Module],
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float = 0.05,
) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the 2-D weights of `matrices`, AdamW for all other parameters.

    The update of Muon is scaled to the size of AdamW's (Liu et al. 2025, arXiv:2502.16982), so that one
    learning rate serves both.

    Args:
        matrices: The modules whose 2-D weights Muon optimizes.
        others: Modules whose remaining parameters AdamW optimizes; they may contain `matrices`.
        learning_rate: Peak learning rate of both.
        betas: Decay rates of AdamW's moments.
        weight_decay: Decay of Muon's weights; AdamW has none.

    Returns:
        [Muon, AdamW].
    """
    hidden = [p for module in matrices for p in module.parameters() if p.ndim == 2]
    taken = {id(p) for p in hidden}
    rest = {id(p): p for m in others for p in m.parameters() if id(p) not in taken}
    return [
        Muon(hidden, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest.values(), lr=learning_rate, betas=betas, weight_decay=0.0, fused=True),
    ]


def warmup_cosine(step: int, steps: int, warmup: int, floor: float = 0.02) -> float:
    """The factor of the learning rate: linear up to 1, then half a cosine down to `floor`.

    Args:
        step: The step, from 0.
        steps: Number of steps of the training.
        warmup: Number of steps of the linear part, at least 1.
        floor: The factor at the end.

    Returns:
        A factor in (0, 1].
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the learning rate of every parameter group.

    Args:
        optimizer: The optimizer.
        factor: The factor of the learning rate that the group was created with.
    """
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("base_lr", group["lr"]) * factor


class ExponentialAverage:
    """The exponential moving average (EMA) of a module's weights.

    average_t = d_t * average_(t-1) + (1 - d_t) * weights_t, where d_t = min(decay, (1 + t) / (10 + t)), so
    that the average is also of use in short trainings. Buffers, such as the codebook's running means, are
    copied.

    Args:
        module: The module, whose present weights start the average.
        decay: The largest d_t.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.averaged = {k for k, p in module.named_parameters() if p.requires_grad}
        self.restart(module)

    def restart(self, module: nn.Module) -> None:
        """Start the average from the present weights of the module."""
        self.state = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Include the weights after a step.

        Args:
            module: The module, of the same state keys.
            step: The step t, from 0.
        """
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        present = module.state_dict()
        averaged = [key for key in present if key in self.averaged]
        torch._foreach_lerp_([self.state[k] for k in averaged], [present[k] for k in averaged], weight)
        for key in present.keys() - self.averaged:
            self.state[key].copy_(present[key])


@contextmanager
def averaged_weights(model: nn.Module, average: ExponentialAverage | None) -> Iterator[None]:
    """Give a model its averaged weights for the length of a `with`.

    Args:
        model: The model.
        average: Its averaged weights; the model keeps its own if None.

    Yields:
        Nothing.
    """
    if average is None:
        yield
        return
    own = {k: v.detach().clone() for k, v in model.state_dict().items()}
    model.load_state_dict(average.state)
    try:
        yield
    finally:
        model.load_state_dict(own)
