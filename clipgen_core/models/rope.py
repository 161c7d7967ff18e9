"""Rotary positions (RoFormer, arXiv:2104.09864) in two dimensions (LlamaGen, arXiv:2406.06525)."""

import torch
from torch import Tensor

ROPE_BASE = 10_000.0


def rope_turns(grid: int, head_width: int, prefix: int) -> Tensor:
    """Cosine and sine of how far each position turns, [2, prefix + grid * grid - 1, head_width / 2]: half
    of a head turns by the row, half by the column of a code (LlamaGen, arXiv:2406.06525, section 3.2);
    prefix tokens do not turn."""
    speed = ROPE_BASE ** -(torch.arange(head_width // 4) / (head_width // 4))
    place = torch.arange(grid * grid - 1).unsqueeze(1)
    angles = torch.cat([(place // grid + 1) * speed, (place % grid + 1) * speed], dim=1)
    angles = torch.cat([torch.zeros(prefix, head_width // 2), angles])
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """RoPE (arXiv:2104.09864) on x [n, heads, s, w] by turns [2, s, w / 2]."""
    cosine, sine = turns.to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine], dim=-1)
