"""Decoder-only transformer over a grid of codes, conditioned on CLIP embeddings.

Architecture only, single device. The embedding is the first token (CLIP-GEN, arXiv:2203.00386);
further tokens may hold neighbouring embeddings (kNN-Diffusion, arXiv:2204.02849). By configuration
it is the public implementation's GPT-2 shape, LlamaGen's (arXiv:2406.06525: RMSNorm, SwiGLU, QK-norm,
2-D RoPE), or one for few pictures, where the embedding also scales and shifts what every block
reads (DiT, arXiv:2212.09748, section 3.2), lest one wrong code derail the rest.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clipgen_core.models.attention import attend
from clipgen_core.models.gap import Gap
from clipgen_core.models.rope import rope_turns, rotate
from clipgen_core.settings.models import GapConfig, TransformerConfig

DIRECT = GapConfig()


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
        grid: side of the grid; a picture has t = grid * grid codes.
        embedding_dim: width d of the CLIP embedding.
        gap: how embeddings are made ready; its statistics are saved with the weights.
    """

    turns: Tensor

    def __init__(
        self,
        config: TransformerConfig,
        codebook_size: int,
        grid: int,
        embedding_dim: int,
        gap: GapConfig = DIRECT,
    ) -> None:
        super().__init__()
        self.gap = Gap(gap, embedding_dim)
        self.config, self.grid, self.embedding_dim = config, grid, embedding_dim
        self.recompute = False  # recompute the blocks in the backward pass instead of storing them
        width, self.prefix = config.width, 1 + config.neighbours
        everywhere = config.condition == "everywhere"
        self.codes = nn.Embedding(codebook_size, width)
        self.condition = nn.Linear(embedding_dim, 2 * width if everywhere else width)
        self.neighbours = nn.Linear(embedding_dim, width) if config.neighbours else None
        self.nothing = nn.Parameter(torch.zeros(embedding_dim))
        if config.positions == "learned":
            self.place = nn.Parameter(torch.randn(self.prefix + grid * grid - 1, width) * 0.02)
        else:
            turns = rope_turns(grid, config.width // config.heads, self.prefix)
            self.register_buffer("turns", turns, persistent=False)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = norm(config, width)
        self.head = nn.Linear(width, codebook_size, bias=config.bias)
        self._initialise()

    def _initialise(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding) and "modulation" not in name:
                nn.init.normal_(module.weight, std=0.02)
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

    def forward(
        self,
        codes: Tensor,
        embedding: Tensor,
        cache: Cache | None = None,
        dropped: Tensor | None = None,
    ) -> Tensor:
        """Logits of the next codes.

        Args:
            codes: int64 [n, s] codes so far. Without a cache, all of them from the first on
                (s may be 0); with one, only those it has not seen.
            embedding: float [n, 1 + neighbours, d], the own one first.
            dropped: rows that go without their embedding, bool [n]: a learned one stands for "nothing"
                (classifier-free guidance, arXiv:2207.12598).

        Returns:
            [n, s + 1, k] from the first call or without a cache, [n, s, k] afterwards.
        """
        if dropped is not None:
            embedding = torch.where(dropped.view(-1, 1, 1), self.nothing, embedding)
        start = cache.length if cache else 0
        x, everywhere = self._embed(codes, embedding, first=start == 0)
        end = start + x.shape[1]
        turns = None
        if self.config.positions == "learned":
            x = x + self.place[start:end]
        else:
            turns = self.turns[:, start:end].to(x.dtype)
        x = self.dropout(x if everywhere is None else x + everywhere)
        for layer, block in enumerate(self.blocks):
            if self.recompute and self.training:
                x = checkpoint(block, x, everywhere, turns, use_reentrant=False)
            else:
                x = block(x, everywhere, turns, cache, layer)
        if cache:
            cache.length = end
        predicted = x[:, max(self.prefix - 1 - start, 0) :]
        logits: Tensor = self.head(self.norm(predicted))
        return logits

    def _embed(self, codes: Tensor, embedding: Tensor, first: bool) -> tuple[Tensor, Tensor | None]:
        """The tokens to read [n, s, width], with the prefix if they are the `first`, and what goes
        everywhere [n, 1, width]."""
        embedding = embedding * self.embedding_dim**0.5
        own, everywhere = self.condition(embedding[:, :1]), None
        if self.config.condition == "everywhere":
            everywhere, own = own.chunk(2, dim=-1)
        x = self.codes(codes)
        if first:
            beside = [self.neighbours(embedding[:, 1:])] if self.neighbours else []
            x = torch.cat([own, *beside, x], dim=1)
        return x, everywhere

    def matrices(self) -> list[nn.Module]:
        """The layers whose weights mix features of features: Muon's part."""
        return [part for block in self.blocks for part in (block.attention, block.feed_forward)]  # type: ignore[misc]

    @property
    def positions(self) -> int:
        """Codes a picture."""
        return self.grid * self.grid

    def new_cache(self, rows: int) -> Cache:
        config, like = self.config, self.gap.image_mean
        positions = self.prefix + self.grid * self.grid - 1
        shape = (config.layers, rows, config.heads, positions, config.width // config.heads)
        return Cache(like.new_zeros(shape), like.new_zeros(shape))


class Block(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1 = norm(config, config.width)
        self.attention = Attention(config)
        self.norm2 = norm(config, config.width)
        self.feed_forward = SwiGLU(config) if config.feed_forward == "swiglu" else Gelu(config)
        self.dropout = nn.Dropout(config.dropout)
        self.modulation = None
        if config.condition == "everywhere":
            self.modulation = nn.Linear(config.width, 4 * config.width)
            nn.init.zeros_(self.modulation.weight)

    def forward(
        self,
        x: Tensor,
        everywhere: Tensor | None,
        turns: Tensor | None,
        cache: Cache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """x [n, s, width]; everywhere [n, 1, width] scales and shifts what each half of the block reads."""
        read1, read2 = self.norm1, self.norm2
        if self.modulation is not None and everywhere is not None:
            scale1, shift1, scale2, shift2 = self.modulation(F.silu(everywhere)).chunk(4, dim=-1)
            x = x + self.dropout(
                self.attention(torch.addcmul(shift1, read1(x), 1 + scale1), turns, cache, layer)
            )
            return x + self.dropout(self.feed_forward(torch.addcmul(shift2, read2(x), 1 + scale2)))
        x = x + self.dropout(self.attention(read1(x), turns, cache, layer))
        return x + self.dropout(self.feed_forward(read2(x)))


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.normalise = config.heads, None
        if config.qk_norm:
            self.normalise = F.rms_norm if config.norm == "rms" else F.layer_norm
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.bias)
        self.out = nn.Linear(config.width, config.width, bias=config.bias)

    def forward(self, x: Tensor, turns: Tensor | None, cache: Cache | None, layer: int) -> Tensor:
        n, s, _ = x.shape
        q, k, v = (t.view(n, s, self.heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        if self.normalise:
            q, k = self.normalise(q, q.shape[-1:]), self.normalise(k, k.shape[-1:])
        if turns is not None:
            q, k = rotate(q, turns), rotate(k, turns)
        causal = s > 1
        if cache:
            end = cache.length + s
            cache.keys[layer, :, :, cache.length : end] = k
            cache.values[layer, :, :, cache.length : end] = v
            k, v = cache.keys[layer, :, :, :end], cache.values[layer, :, :, :end]
            if causal and cache.length:
                raise ValueError("with a filled cache, give one code at a time")
        mixed = attend(q, k, v, causal=causal)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(n, s, -1))
        return out


class SwiGLU(nn.Module):
    """Shazeer 2020 (arXiv:2002.05202), with 8/3 of the width inside."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        inner = (8 * config.width // 3 + 31) // 32 * 32
        self.gate_and_up = nn.Linear(config.width, 2 * inner, bias=config.bias)
        self.out = nn.Linear(inner, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_and_up(x).chunk(2, dim=-1)
        out: Tensor = self.out(F.silu(gate) * up)
        return out


class Gelu(nn.Module):
    """GPT-2's feed-forward part, with four times the width inside."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, 4 * config.width, bias=config.bias)
        self.out = nn.Linear(4 * config.width, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(F.gelu(self.up(x)))
        return out


def norm(config: TransformerConfig, width: int) -> nn.Module:
    if config.norm == "rms":
        return nn.RMSNorm(width, eps=1e-6)
    return nn.LayerNorm(width, eps=1e-5, bias=config.bias)
