"""Scaled dot-product attention, by the kernel that is fastest on the device."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

_as_on_gpus = False


def trains_on_cpu(x: Tensor) -> bool:
    """Whether gradients are computed on a CPU, where other kernels are faster than on GPUs."""
    return x.device.type == "cpu" and torch.is_grad_enabled() and not _as_on_gpus


@contextmanager
def kernels_of_gpus() -> Iterator[None]:
    """Choose kernels as on GPUs, to count there what those need."""
    global _as_on_gpus
    _as_on_gpus = True
    try:
        yield
    finally:
        _as_on_gpus = False


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(w)) v.

    Uses PyTorch's fused kernel, except for training on CPUs, where its forward and backward pass take two
    and a half to five times as long as explicit matrix products (at 257 and 64 positions under bf16).

    Args:
        q: Queries, float [n, heads, s, w].
        k: Keys, float [n, heads, t, w].
        v: Values, float [n, heads, t, w].
        causal: Whether a position attends only to itself and earlier positions; this needs s = t.
        mask: Where a position attends to another, bool [n, 1, s, t]; None: everywhere. Not with `causal`.
            Without gradients also what is added to the logits, float [n, 1, s, t].

    Returns:
        Float [n, heads, s, w].
    """
    if not trains_on_cpu(q):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    bias = torch.zeros(q.shape[-2], k.shape[-2], dtype=q.dtype)
    if causal:
        bias = bias.fill_(-torch.inf).triu(1)
    elif mask is not None:
        hidden = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
        bias = hidden.expand(*q.shape[:-1], k.shape[-2]).flatten(0, 1)
    scaled = (q * q.shape[-1] ** -0.5).flatten(0, 1)
    weights = torch.baddbmm(bias, scaled, k.flatten(0, 1).transpose(1, 2)).softmax(dim=-1)
    return torch.bmm(weights, v.flatten(0, 1)).view_as(q)
