"""Attention, by the kernel that is fast where it runs."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(w)) v on [n, heads, s, w]; `causal` needs as many keys as queries.

    torch's fused kernel, except for training on CPUs, where it takes two and a half to five times as long as
    the products written out (forward and backward, at 257 and 64 positions under bf16).
    """
    if q.device.type != "cpu" or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    hidden = torch.zeros(q.shape[-2], k.shape[-2], dtype=q.dtype)
    if causal:
        hidden = hidden.fill_(-torch.inf).triu(1)
    scaled = (q * q.shape[-1] ** -0.5).flatten(0, 1)
    weights = torch.baddbmm(hidden, scaled, k.flatten(0, 1).transpose(1, 2)).softmax(dim=-1)
    return torch.bmm(weights, v.flatten(0, 1)).view_as(q)
