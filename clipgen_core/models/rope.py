"""Rotary position embedding (RoFormer, arXiv:2104.09864) in two dimensions (LlamaGen, arXiv:2406.06525)."""

import torch
from torch import Tensor

ROPE_BASE = 10_000.0


def rotary_embedding(grid: int, head_width: int, prefix: int) -> Tensor:
    """The cosines and sines by which each position's queries and keys are rotated.

    One half of a head is rotated by the row and the other half by the column of a code (LlamaGen,
    arXiv:2406.06525, section 3.2). Prefix tokens are not rotated.

    Args:
        grid: Side of the grid of codes.
        head_width: Width of an attention head, divisible by 4.
        prefix: Number of tokens ahead of the first code.

    Returns:
        float32 [2, prefix + grid * grid, head_width / 2], the cosines first.
    """
    frequency = ROPE_BASE ** -(torch.arange(head_width // 4) / (head_width // 4))
    position = torch.arange(grid * grid).unsqueeze(1)
    angles = torch.cat([(position // grid + 1) * frequency, (position % grid + 1) * frequency], dim=1)
    angles = torch.cat([torch.zeros(prefix, head_width // 2), angles])
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Apply the rotary embedding to queries or keys.

    Args:
        x: Queries or keys, float [n, heads, s, w].
        rotary: Cosines and sines of the same s positions, float [2, s, w / 2] or [2, n, 1, s, w / 2].

    Returns:
        The rotated `x`, of its shape and dtype.
    """
    cos, sin = rotary.to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
