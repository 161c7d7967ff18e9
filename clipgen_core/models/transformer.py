"""Decoder-only transformer over a grid of codes, conditioned on CLIP embeddings.

Architecture only, for a single device. The embedding is the first token (CLIP-GEN, arXiv:2203.00386);
further tokens may hold neighbour embeddings (kNN-Diffusion, arXiv:2204.02849). The configuration
chooses among the GPT-2 architecture of the public implementation, LlamaGen's (arXiv:2406.06525: RMSNorm,
SwiGLU, QK-norm, 2-D RoPE), and one for small data sets, in which the embedding is also a global condition:
it is added to every token and modulates every block by adaptive layer norm (adaLN; DiT, arXiv:2212.09748,
section 3.2), so that a wrong code does not derail all later ones.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clipgen_core.models.attention import attend
from clipgen_core.models.gap import Gap
from clipgen_core.models.layers import Gelu, SwiGLU, norm
from clipgen_core.models.rope import rotary_embedding, rotate
from clipgen_core.settings.models import GapConfig, TransformerConfig

DIRECT = GapConfig()
EARLIER_KEYS = {"nothing": "null_embedding", "place": "position_embedding"}  # up to version 0.1


@dataclass
class Cache:
    """The key-value cache: keys and values of `length` positions, [layers, n, heads, positions, w]."""

    keys: Tensor
    values: Tensor
    length: int = 0


class Transformer(nn.Module):
    """Predicts each code of a grid, in raster order, from the codes before it and an embedding.

    Args:
        config: The architecture.
        codebook_size: Number of codes k.
        grid: Side of the grid; an image has t = grid * grid codes.
        embedding_dim: Width d of the CLIP embedding.
        gap: How embeddings are prepared; the statistics for it are saved with the weights.
    """

    rotary: Tensor

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
        has_global = config.condition == "everywhere"
        self.codes = nn.Embedding(codebook_size, width)
        self.condition = nn.Linear(embedding_dim, 2 * width if has_global else width)
        self.neighbours = nn.Linear(embedding_dim, width) if config.neighbours else None
        self.null_embedding = nn.Parameter(torch.zeros(embedding_dim))
        if config.positions == "learned":
            self.position_embedding = nn.Parameter(torch.randn(self.prefix + grid * grid - 1, width) * 0.02)
        else:
            rotary = rotary_embedding(grid, config.width // config.heads, self.prefix)
            if config.details == "llamagen":
                rotary[:, : self.prefix] = 0  # queries and keys of the prefix become zero
            self.register_buffer("rotary", rotary, persistent=False)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = norm(config, width)
        self.head = nn.Linear(width, codebook_size, bias=config.bias)
        self._initialise()
        self.register_load_state_dict_pre_hook(_rename_earlier_keys)

    def _initialise(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding) and "modulation" not in name:
                nn.init.normal_(module.weight, std=0.02)
        for name, weight in self.named_parameters():
            if name.endswith("out.weight"):
                nn.init.normal_(weight, std=0.02 / (2 * self.config.layers) ** 0.5)

    @torch.no_grad()
    def start_from_codebook(self, codebook: Tensor) -> None:
        """Initialise the code embeddings and the output layer with random projections of the codebook.

        Codes with similar vectors then start with similar weights, so that rare codes learn from
        frequent ones when there are few images. Whatever the codebook's dimension and scale, an embedding
        has length 2, and a logit, whose input has RMS 1, has standard deviation 0.5: the loss starts
        at about ln(k) + 0.5^2 / 2.

        Args:
            codebook: The VQGAN's code vectors, float [k, code_dim].
        """
        centred = codebook - codebook.mean(0)
        directions = centred / centred.square().sum(1).mean().sqrt()  # of RMS length 1
        for table, length in ((self.codes.weight, 2.0), (self.head.weight, 0.5)):
            projection = torch.randn(codebook.shape[1], table.shape[1], device=codebook.device)
            table.copy_(directions @ projection * (length / table.shape[1] ** 0.5))

    def forward(
        self,
        codes: Tensor,
        embedding: Tensor,
        cache: Cache | None = None,
        dropped: Tensor | None = None,
    ) -> Tensor:
        """Compute the logits of the next codes.

        Args:
            codes: The codes so far, int64 [n, s]. Without a cache, all from the first on (s may be 0);
                with a cache, only those that it does not hold yet.
            embedding: The image's embedding, then its neighbour embeddings, float [n, 1 + neighbours, d].
            cache: Keys and values of earlier positions; this call adds its own.
            dropped: Rows whose embeddings are replaced by the null embedding, bool [n]
                (classifier-free guidance, arXiv:2207.12598).

        Returns:
            [n, s + 1, k] at the first call and without a cache, [n, s, k] afterwards.
        """
        if dropped is not None:
            embedding = torch.where(dropped.view(-1, 1, 1), self.null_embedding, embedding)
        start = cache.length if cache else 0
        x, global_condition = self._embed(codes, embedding, first=start == 0)
        end = start + x.shape[1]
        rotary = None
        if self.config.positions == "learned":
            x = x + self.position_embedding[start:end]
        else:
            rotary = self.rotary[:, start:end].to(x.dtype)
        x = self.dropout(x if global_condition is None else x + global_condition)
        for layer, block in enumerate(self.blocks):
            if self.recompute and self.training:
                x = checkpoint(block, x, global_condition, rotary, use_reentrant=False)
            else:
                x = block(x, global_condition, rotary, cache, layer)
        if cache:
            cache.length = end
        predicted = x[:, max(self.prefix - 1 - start, 0) :]
        logits: Tensor = self.head(self.norm(predicted))
        return logits

    def _embed(self, codes: Tensor, embedding: Tensor, first: bool) -> tuple[Tensor, Tensor | None]:
        """The tokens [n, s, width], with the prefix at the `first` call, and the global condition
        [n, 1, width]."""
        embedding = embedding * self.embedding_dim**0.5
        token, global_condition = self.condition(embedding[:, :1]), None
        if self.config.condition == "everywhere":
            global_condition, token = token.chunk(2, dim=-1)
        x = self.codes(codes)
        if first:
            neighbours = [self.neighbours(embedding[:, 1:])] if self.neighbours else []
            x = torch.cat([token, *neighbours, x], dim=1)
        return x, global_condition

    def matrices(self) -> list[nn.Module]:
        """The modules whose 2-D weights are hidden layers, which Muon optimizes."""
        return [part for block in self.blocks for part in (block.attention, block.feed_forward)]  # type: ignore[misc]

    @property
    def positions(self) -> int:
        """Number of codes of an image."""
        return self.grid * self.grid

    def new_cache(self, rows: int) -> Cache:
        """An empty cache for a batch of `rows`, of the model's dtype and on its device."""
        config, like = self.config, self.gap.image_mean
        positions = self.prefix + self.grid * self.grid - 1
        shape = (config.layers, rows, config.heads, positions, config.width // config.heads)
        return Cache(like.new_zeros(shape), like.new_zeros(shape))


class Block(nn.Module):
    """Pre-norm attention and feed-forward layers, modulated by the global condition if there is one."""

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
        global_condition: Tensor | None,
        rotary: Tensor | None,
        cache: Cache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """Apply the block.

        Args:
            x: Tokens, float [n, s, width].
            global_condition: Sets the scale and shift of the normalised inputs of both layers (adaLN),
                float [n, 1, width].
            rotary: Rotary embedding of the tokens' positions, float [2, s, w / 2], w a head's width.
            cache: Keys and values of earlier positions.
            layer: Index of the block in the cache.

        Returns:
            Float [n, s, width].
        """
        norm1, norm2 = self.norm1, self.norm2
        if self.modulation is not None and global_condition is not None:
            scale1, shift1, scale2, shift2 = self.modulation(F.silu(global_condition)).chunk(4, dim=-1)
            modulated = torch.addcmul(shift1, norm1(x), 1 + scale1)
            x = x + self.dropout(self.attention(modulated, rotary, cache, layer))
            return x + self.dropout(self.feed_forward(torch.addcmul(shift2, norm2(x), 1 + scale2)))
        x = x + self.dropout(self.attention(norm1(x), rotary, cache, layer))
        return x + self.dropout(self.feed_forward(norm2(x)))


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.normalise = config.heads, None
        if config.qk_norm:
            self.normalise = F.rms_norm if config.norm == "rms" else F.layer_norm
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.bias)
        self.out = nn.Linear(config.width, config.width, bias=config.bias)

    def forward(self, x: Tensor, rotary: Tensor | None, cache: Cache | None, layer: int) -> Tensor:
        """Attend to the tokens and, with a cache, to all positions before them.

        Args:
            x: Tokens, float [n, s, width]; s must be 1 where the cache is not empty.
            rotary: Rotary embedding of their positions, float [2, s, w / 2], w a head's width.
            cache: Keys and values of earlier positions; those of `x` are added.
            layer: Index of the block in the cache.

        Returns:
            Float [n, s, width].
        """
        n, s, _ = x.shape
        q, k, v = (t.view(n, s, self.heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        if self.normalise:
            q, k = self.normalise(q, q.shape[-1:]), self.normalise(k, k.shape[-1:])
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        causal = s > 1
        if cache:
            end = cache.length + s
            cache.keys[layer, :, :, cache.length : end] = k
            cache.values[layer, :, :, cache.length : end] = v
            k, v = cache.keys[layer, :, :, :end], cache.values[layer, :, :, :end]
            if causal and cache.length:
                raise ValueError("a cache that is not empty takes one code at a time")
        mixed = attend(q, k, v, causal=causal)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(n, s, -1))
        return out


def _rename_earlier_keys(model: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """A load_state_dict pre-hook: checkpoints of earlier versions name some weights differently."""
    for earlier, name in EARLIER_KEYS.items():
        if prefix + earlier in state:
            state[prefix + name] = state.pop(prefix + earlier)
