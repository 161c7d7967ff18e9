"""Sampling as LlamaGen's public code does it, written from its description (arXiv:2406.06525, section 3.4).

The key-value cache has its full length from the beginning: every step attends to all positions, with a mask
over those to come. Guidance doubles the batch. Rotary embedding in two dimensions, RMSNorm, SwiGLU.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipgen_core.models.rope import rotary_embedding, rotate
from clipgen_core.settings.models import TransformerConfig


class Layer(nn.Module):
    """A pre-norm block with a cache of fixed length."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, inner = config.width, -(-(8 * config.width // 3) // 256) * 256
        self.heads = config.heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate, self.up, self.down = (
            nn.Linear(*sides, bias=False) for sides in ((width, inner), (width, inner), (inner, width))
        )

    def setup(self, rows: int, positions: int, like: Tensor) -> None:
        shape = (rows, self.heads, positions, self.qkv.in_features // self.heads)
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)

    def forward(self, x: Tensor, rotary: Tensor, position: int, mask: Tensor) -> Tensor:
        n, s, _ = x.shape
        q, k, v = (t.view(n, s, self.heads, -1).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        self.keys[:, :, position : position + s] = rotate(k, rotary)
        self.values[:, :, position : position + s] = v
        mixed = F.scaled_dot_product_attention(rotate(q, rotary), self.keys, self.values, attn_mask=mask)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, s, -1))
        hidden = self.norm2(x)
        return x + self.down(F.silu(self.gate(hidden)) * self.up(hidden))  # type: ignore[no-any-return]


class StaticCacheGpt(nn.Module):
    """LlamaGen's decoder with one prefix token, for sampling."""

    def __init__(self, config: TransformerConfig, codebook_size: int, grid: int, dim: int) -> None:
        super().__init__()
        self.codes, self.condition = (
            nn.Embedding(codebook_size, config.width),
            nn.Linear(dim, config.width, bias=False),
        )
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm, self.head = (
            nn.RMSNorm(config.width),
            nn.Linear(config.width, codebook_size, bias=False),
        )
        self.rotary, self.positions = rotary_embedding(grid, config.width // config.heads, 1), grid * grid

    @torch.no_grad()
    def sample(self, embedding: Tensor, guidance: float, top_k: int) -> Tensor:
        """Codes of one image a row.

        Args:
            embedding: Float [n, d].
            guidance: Scale of classifier-free guidance.
            top_k: Sample from the k likeliest codes.

        Returns:
            int64 [n, t].
        """
        x = self.condition(torch.cat([embedding, torch.zeros_like(embedding)])).unsqueeze(1)
        for layer in self.layers:
            layer.setup(len(x), self.positions, x)  # type: ignore[operator]
        causal = torch.ones(self.positions, self.positions, dtype=torch.bool, device=x.device).tril()
        codes = []
        for position in range(self.positions):
            rotary, mask = self.rotary[:, position : position + 1], causal[position : position + 1]
            for layer in self.layers:
                x = layer(x, rotary, position, mask)
            with_condition, without = self.head(self.norm(x[:, -1])).float().chunk(2)
            logits = without + (with_condition - without) * guidance
            least = logits.topk(top_k).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
            codes.append(torch.multinomial(logits.softmax(dim=-1), 1))
            x = self.codes(codes[-1].repeat(2, 1))
        return torch.cat(codes, dim=1)
