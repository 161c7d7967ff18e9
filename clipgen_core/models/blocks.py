"""The transformer's blocks: attention with rotary positions and a key-value cache; feed-forward layers."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipgen_core.models.attention import attend
from clipgen_core.models.layers import Gelu, SwiGLU, norm
from clipgen_core.models.rope import rotate
from clipgen_core.settings.models import TransformerConfig


@dataclass
class Cache:
    """The key-value cache: keys and values of `length` tokens, [layers, n, heads, tokens, w]."""

    keys: Tensor
    values: Tensor
    length: int = 0


@dataclass(frozen=True)
class View:
    """What the tokens of a call attend to, and where they stand.

    rotary: Rotary embeddings of the queries and of the keys, each float [2, s, w / 2] or [2, n, 1, s, w / 2],
        w a head's width; None without.
    causal: Whether a token attends to itself and the tokens before it only.
    mask: The tokens of this call to which each attends, bool [n, 1, s, s]; None: all. Those in the cache
        are always attended to.
    """

    rotary: tuple[Tensor, Tensor] | None
    causal: bool = False
    mask: Tensor | None = None


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
        view: View,
        cache: Cache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """Apply the block.

        Args:
            x: Tokens, float [n, s, width].
            global_condition: Sets the scale and shift of the normalised inputs of both layers (adaLN),
                float [n, 1, width].
            view: What the tokens attend to.
            cache: Keys and values of earlier tokens.
            layer: Index of the block in the cache.

        Returns:
            Float [n, s, width].
        """
        norm1, norm2 = self.norm1, self.norm2
        if self.modulation is not None and global_condition is not None:
            scale1, shift1, scale2, shift2 = self.modulation(F.silu(global_condition)).chunk(4, dim=-1)
            modulated = torch.addcmul(shift1, norm1(x), 1 + scale1)
            x = x + self.dropout(self.attention(modulated, view, cache, layer))
            return x + self.dropout(self.feed_forward(torch.addcmul(shift2, norm2(x), 1 + scale2)))
        x = x + self.dropout(self.attention(norm1(x), view, cache, layer))
        return x + self.dropout(self.feed_forward(norm2(x)))


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.normalise = config.heads, None
        if config.qk_norm:
            self.normalise = F.rms_norm if config.norm == "rms" else F.layer_norm
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.bias)
        self.out = nn.Linear(config.width, config.width, bias=config.bias)

    def forward(self, x: Tensor, view: View, cache: Cache | None, layer: int) -> Tensor:
        """Attend to the tokens of the call and, with a cache, to all tokens before them.

        Args:
            x: Tokens, float [n, s, width].
            view: What they attend to. A mask, or `causal` with s > 1, needs an empty cache.
            cache: Keys and values of earlier tokens; those of `x` are added.
            layer: Index of the block in the cache.

        Returns:
            Float [n, s, width].
        """
        n, s, _ = x.shape
        q, k, v = (t.view(n, s, self.heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        if self.normalise:
            q, k = self.normalise(q, q.shape[-1:]), self.normalise(k, k.shape[-1:])
        if view.rotary is not None:
            q, k = rotate(q, view.rotary[0]), rotate(k, view.rotary[1])
        causal = view.causal and s > 1
        if cache:
            end = cache.length + s
            cache.keys[layer, :, :, cache.length : end] = k
            cache.values[layer, :, :, cache.length : end] = v
            k, v = cache.keys[layer, :, :, :end], cache.values[layer, :, :, :end]
            if cache.length and (causal or view.mask is not None):
                raise ValueError("a cache that is not empty takes one token, or tokens that attend to all")
        mixed = attend(q, k, v, causal=causal, mask=view.mask)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(n, s, -1))
        return out
