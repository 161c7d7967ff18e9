"""The transformer's blocks: attention with rotary positions and a key-value cache; feed-forward layers."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipgen_core.models.attention import attend
from clipgen_core.models.layers import Gelu, SwiGLU, norm
from clipgen_core.models.rope import rotate
from clipgen_core.settings.models import TransformerConfig


@dataclass(frozen=True)
class View:
    """What the tokens of a call attend to, and where they stand.

    rotary: Rotary embeddings of the queries and of the keys, each float [2, s, w / 2] or [2, n, 1, s, w / 2],
        w a head's width; None without.
    causal: Whether a token attends to itself and the tokens before it only.
    mask: What each token attends to, bool [n, 1, s, r] or what is added to the logits of attention; None:
        everything. Without a cache, r = s are the tokens of the call; with one, its first `reach` slots.
    slots: With a cache of n rows: where among all their slots the tokens go, int64 [n * s].
    reach: With a cache: how many of its slots are read.
    """

    rotary: tuple[Tensor, Tensor] | None
    causal: bool = False
    mask: Tensor | None = None
    slots: Tensor | None = None
    reach: int = 0


@dataclass(frozen=True)
class Cache:
    """The keys and values of one block, float [n, slots, heads, w].

    Its shape never changes, and the slots that a call writes are a tensor. So the calls that sample an image
    have few shapes, and each can be recorded once and replayed (CUDA graphs).
    """

    keys: Tensor
    values: Tensor

    def __getitem__(self, rows: slice) -> "Cache":
        """The cache of some rows; the tensors are the same."""
        return Cache(self.keys[rows], self.values[rows])

    def extend(self, k: Tensor, v: Tensor, view: View) -> tuple[Tensor, Tensor]:
        """Add the tokens of a call.

        Args:
            k: Their keys, float [n, heads, s, w].
            v: Their values, float [n, heads, s, w].
            view: Its `slots` and `reach`.

        Returns:
            The keys and values of the first `reach` slots, each float [n, heads, reach, w].
        """
        for stored, new in ((self.keys, k), (self.values, v)):
            rows = new.transpose(1, 2).flatten(0, 1).to(stored.dtype)
            stored.flatten(0, 1).index_copy_(0, view.slots, rows)  # type: ignore[arg-type]
        return self.keys[:, : view.reach].transpose(1, 2), self.values[:, : view.reach].transpose(1, 2)


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
    ) -> Tensor:
        """Apply the block.

        Args:
            x: Tokens, float [n, s, width].
            global_condition: Sets the scale and shift of the normalised inputs of both layers (adaLN),
                float [n, 1, width].
            view: What the tokens attend to.
            cache: Keys and values of earlier tokens; those of `x` are added.

        Returns:
            Float [n, s, width].
        """
        norm1, norm2 = self.norm1, self.norm2
        if self.modulation is not None and global_condition is not None:
            scale1, shift1, scale2, shift2 = self.modulation(F.silu(global_condition)).chunk(4, dim=-1)
            modulated = torch.addcmul(shift1, norm1(x), 1 + scale1)
            x = x + self.dropout(self.attention(modulated, view, cache))
            return x + self.dropout(self.feed_forward(torch.addcmul(shift2, norm2(x), 1 + scale2)))
        x = x + self.dropout(self.attention(norm1(x), view, cache))
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

    def forward(self, x: Tensor, view: View, cache: Cache | None) -> Tensor:
        """Attend to the tokens of the call and, with a cache, to tokens of earlier calls.

        Args:
            x: Tokens, float [n, s, width].
            view: What they attend to.
            cache: Keys and values of earlier tokens; those of `x` are added.

        Returns:
            Float [n, s, width].
        """
        n, s, _ = x.shape
        q, k, v = (t.view(n, s, self.heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        if self.normalise:
            q, k = self.normalise(q, q.shape[-1:]), self.normalise(k, k.shape[-1:])
        if view.rotary is not None:
            q, k = rotate(q, view.rotary[0]), rotate(k, view.rotary[1])
        if cache is not None:
            k, v = cache.extend(k, v, view)
        mixed = attend(q, k, v, causal=view.causal, mask=view.mask)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(n, s, -1))
        return out
