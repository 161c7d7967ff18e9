"""Feed-forward and normalisation layers of the transformer."""

import torch.nn.functional as F
from torch import Tensor, nn

from clipgen_core.settings.models import TransformerConfig


class SwiGLU(nn.Module):
    """Gated feed-forward layer (Shazeer 2020, arXiv:2002.05202); its hidden width is 8/3 of the width."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        multiple = 256 if config.details == "llamagen" else 32
        inner = -(-(8 * config.width // 3) // multiple) * multiple
        self.gate_and_up = nn.Linear(config.width, 2 * inner, bias=config.bias)
        self.out = nn.Linear(inner, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_and_up(x).chunk(2, dim=-1)
        out: Tensor = self.out(F.silu(gate) * up)
        return out


class Gelu(nn.Module):
    """GPT-2's feed-forward layer; its hidden width is four times the width."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, 4 * config.width, bias=config.bias)
        self.out = nn.Linear(4 * config.width, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(F.gelu(self.up(x)))
        return out


def norm(config: TransformerConfig, width: int) -> nn.Module:
    """The normalisation layer that the configuration names.

    Args:
        config: The architecture; `config.norm`, `config.bias` and `config.details` are used.
        width: Size of the normalised dimension.

    Returns:
        RMSNorm or LayerNorm.
    """
    if config.norm == "rms":
        return nn.RMSNorm(width, eps=1e-5 if config.details == "llamagen" else 1e-6)
    return nn.LayerNorm(width, eps=1e-5, bias=config.bias)
