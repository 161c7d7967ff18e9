"""Optimizers and schedules. Knows parameters, no models."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from clipgen_core.settings.training import TrainConfig


def optimizers(
    config: TrainConfig, modules: Sequence[nn.Module], matrices: Sequence[nn.Module]
) -> list[torch.optim.Optimizer]:
    """AdamW for all `modules`, or Muon for the 2-D weights of `matrices` and AdamW for the rest."""
    rates = (config.learning_rate, config.betas, config.weight_decay)
    return muon(matrices, modules, *rates) if config.optimizer == "muon" else [adamw(modules, *rates)]


def adamw(
    modules: Iterable[nn.Module],
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float = 0.05,
) -> torch.optim.AdamW:
    """AdamW with decay on matrices only (norms, biases and gains are left alone)."""
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

    The update is scaled to AdamW's size (Liu et al. 2025, arXiv:2502.16982), so that one learning
    rate serves both.
    """
    hidden = [p for module in matrices for p in module.parameters() if p.ndim == 2]
    taken = {id(p) for p in hidden}
    rest = {id(p): p for m in others for p in m.parameters() if id(p) not in taken}
    return [
        torch.optim.Muon(hidden, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest.values(), lr=learning_rate, betas=betas, weight_decay=0.0, fused=True),
    ]


def warmup_cosine(step: int, steps: int, warmup: int, floor: float = 0.02) -> float:
    """The learning rate's factor at `step`: linear up to 1, then half a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Scale every group's learning rate from the one it was made with."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("base_lr", group["lr"]) * factor


class ExponentialAverage:
    """EMA of a module's weights; buffers (the codebook's own averages) are copied.

    decay_t = min(decay, (1 + t) / (10 + t)), so that short runs average too.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {k: v.detach().clone() for k, v in module.state_dict().items()}
        self.averaged = {k for k, p in module.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for key, value in module.state_dict().items():
            if key in self.averaged:
                self.state[key].lerp_(value.to(self.state[key].dtype), weight)
            else:
                self.state[key].copy_(value)
