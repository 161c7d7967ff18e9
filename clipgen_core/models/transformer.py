"""Decoder-only transformer over a grid of codes, conditioned on one CLIP embedding.

Architecture only. The embedding is the first token (CLIP-GEN, arXiv:2203.00386), is added at
every position, and scales and shifts what each block reads (DiT, arXiv:2212.09748, section 3.2):
with few pictures, one wrong code would otherwise derail the rest. Blocks after LlamaGen
(arXiv:2406.06525): RMSNorm, SwiGLU, QK-norm; positions are learned.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from clipgen_core.errors import ClipgenError
from clipgen_core.schema import Frozen


class TransformerConfig(Frozen):
    width: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> "TransformerConfig":
        if self.width % self.heads:
            raise ClipgenError(f"width {self.width} is not divisible by {self.heads} heads")
        return self


@dataclass
class Cache:
    """Keys and values of the positions seen so far, [layers, n, heads, positions, head width]."""

    keys: Tensor
    values: Tensor
    length: int = 0


class Transformer(nn.Module):
    """Predicts each code of a grid, read row by row, from the codes before it and an embedding.

    Args:
        codebook_size: number of codes k.
        positions: codes a picture t (grid * grid).
        embedding_dim: width d of the CLIP embedding.
    """

    def __init__(
        self, config: TransformerConfig, codebook_size: int, positions: int, embedding_dim: int
    ) -> None:
        super().__init__()
        self.config, self.positions, self.embedding_dim = config, positions, embedding_dim
        width = config.width
        self.codes = nn.Embedding(codebook_size, width)
        self.place = nn.Parameter(torch.zeros(positions, width))
        self.condition = nn.Linear(embedding_dim, 2 * width)
        self.nothing = nn.Parameter(torch.zeros(embedding_dim))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.head = nn.Linear(width, codebook_size, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding) and "modulation" not in name:
                nn.init.normal_(module.weight, std=0.02)
        nn.init.normal_(self.place, std=0.02)
        for name, weight in self.named_parameters():
            if name.endswith("out.weight"):
                nn.init.normal_(weight, std=0.02 / (2 * self.config.layers) ** 0.5)

    @torch.no_grad()
    def start_from_codebook(self, codebook: Tensor) -> None:
        """Start codes that look alike alike: inputs and logits as random projections of the VQGAN's
        codebook [k, code_dim]. With few pictures, rare codes learn from their neighbours so."""
        directions = (codebook - codebook.mean(0)) / codebook.std()
        for table in (self.codes.weight, self.head.weight):
            projection = torch.randn(codebook.shape[1], table.shape[1], device=codebook.device)
            table.copy_(directions @ projection * (0.5 / table.shape[1] ** 0.5))

    def forward(self, codes: Tensor, embedding: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits of the next codes.

        Args:
            codes: int64 [n, s] codes so far. Without a cache, all of them from the first on
                (s may be 0); with one, only those it has not seen.
            embedding: float [n, d]; use `unconditional` for no condition.

        Returns:
            [n, s + 1, k] from the first call or without a cache, [n, s, k] afterwards.
        """
        everywhere, first = self.condition(embedding * self.embedding_dim**0.5).chunk(2, dim=-1)
        x = self.codes(codes)
        start = cache.length if cache else 0
        if start == 0:
            x = torch.cat([first.unsqueeze(1), x], dim=1)
        x = self.dropout(x + self.place[start : start + x.shape[1]] + everywhere.unsqueeze(1))
        for layer, block in enumerate(self.blocks):
            x = block(x, everywhere, cache, layer)
        if cache:
            cache.length += x.shape[1]
        logits: Tensor = self.head(self.norm(x))
        return logits

    def unconditional(self, rows: int) -> Tensor:
        """What stands for "no embedding" in classifier-free guidance (arXiv:2207.12598): [rows, d]."""
        return self.nothing.expand(rows, -1)

    def new_cache(self, rows: int) -> Cache:
        config = self.config
        shape = (config.layers, rows, config.heads, self.positions, config.width // config.heads)
        return Cache(self.place.new_zeros(shape), self.place.new_zeros(shape))


class Block(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(config.width, eps=1e-6)
        self.attention = Attention(config)
        self.norm2 = nn.RMSNorm(config.width, eps=1e-6)
        self.feed_forward = SwiGLU(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.modulation = nn.Linear(config.width, 4 * config.width)
        nn.init.zeros_(self.modulation.weight)

    def forward(self, x: Tensor, condition: Tensor, cache: Cache | None, layer: int) -> Tensor:
        """x [n, s, width]; condition [n, width] scales and shifts what each half of the block reads."""
        shaped = self.modulation(F.silu(condition)).unsqueeze(1).chunk(4, dim=-1)
        scale1, shift1, scale2, shift2 = shaped
        x = x + self.dropout(self.attention(self.norm1(x) * (1 + scale1) + shift1, cache, layer))
        out: Tensor = x + self.dropout(self.feed_forward(self.norm2(x) * (1 + scale2) + shift2))
        return out


class Attention(nn.Module):
    """Causal self-attention with normalised queries and keys."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, cache: Cache | None, layer: int) -> Tensor:
        n, s, _ = x.shape
        q, k, v = (t.view(n, s, self.heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
        causal = s > 1
        if cache:
            end = cache.length + s
            cache.keys[layer, :, :, cache.length : end] = k
            cache.values[layer, :, :, cache.length : end] = v
            k, v = cache.keys[layer, :, :, :end], cache.values[layer, :, :, :end]
            if causal and cache.length:
                raise ValueError("with a filled cache, give one code at a time")
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(n, s, -1))
        return out


class SwiGLU(nn.Module):
    """Shazeer 2020 (arXiv:2002.05202), with 8/3 of the width inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = (8 * width // 3 + 31) // 32 * 32
        self.gate_and_up = nn.Linear(width, 2 * inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_and_up(x).chunk(2, dim=-1)
        out: Tensor = self.out(F.silu(gate) * up)
        return out
