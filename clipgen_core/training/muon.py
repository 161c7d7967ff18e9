"""Muon on machines where products in bf16 are slow.

PyTorch's Muon orthogonalizes its updates in bf16 on every machine. CPUs without instructions for bf16 emulate
it: a step of the demo's transformer with two images took 17 s on one core of an AMD EPYC, and 1 s in fp32.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from clipgen_core.device import fast_dtype
from clipgen_core.training.distributed import of_first


class Muon(torch.optim.Muon):
    """PyTorch's Muon (Jordan et al. 2024), which computes in fp32 where that is faster than bf16.

    Its settings and its state are those of PyTorch's. The processes of a training, whose machines may differ,
    all compute in the type of the first one, so that their weights stay the same.
    """

    def __init__(self, *settings: Any, **named: Any) -> None:
        super().__init__(*settings, **named)
        self.in_bf16 = of_first(fast_dtype(self.param_groups[0]["params"][0].device) == torch.bfloat16)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        if self.in_bf16:
            return super().step(closure)
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            for weight in (one for one in group["params"] if one.grad is not None):
                self._update(weight, group)
        return loss

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        gradient, state = weight.grad, self.state[weight]
        assert gradient is not None and group["adjust_lr_fn"] == "match_rms_adamw"
        average = state.setdefault("momentum_buffer", torch.zeros_like(gradient))
        average.lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(average, group["momentum"]) if group["nesterov"] else average
        update = orthogonalized(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(update, alpha=-group["lr"] * 0.2 * max(weight.shape) ** 0.5)  # arXiv:2502.16982


def orthogonalized(
    matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """The matrix with singular values near 1, by Newton and Schulz's iteration in the matrix's type.

    Args:
        matrix: Float [m, n].
        coefficients: Of the iteration's polynomial of degree five.
        steps: Iterations.
        eps: The smallest norm that is divided by.

    Returns:
        Float [m, n].
    """
    a, b, c = coefficients
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / wide.norm().clamp(min=eps)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide
