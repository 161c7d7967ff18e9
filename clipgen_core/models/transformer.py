"""Decoder-only transformer over a grid of codes, conditioned on CLIP embeddings.

Architecture only, for a single device. The embedding is the first token (CLIP-GEN, arXiv:2203.00386);
further tokens may hold neighbour embeddings (kNN-Diffusion, arXiv:2204.02849). The configuration
chooses among the GPT-2 architecture of the public implementation, LlamaGen's (arXiv:2406.06525: RMSNorm,
SwiGLU, QK-norm, 2-D RoPE), and one for small data sets, in which the embedding is also a global condition:
it is added to every token and modulates every block by adaptive layer norm (adaLN; DiT, arXiv:2212.09748,
section 3.2), so that a wrong code does not derail all later ones.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clipgen_core.models.blocks import Block, Cache, View
from clipgen_core.models.gap import Gap
from clipgen_core.models.layers import norm
from clipgen_core.models.layout import NONE, Layout, Step
from clipgen_core.models.rope import rotary_embedding
from clipgen_core.settings.models import GapConfig, TransformerConfig

DIRECT = GapConfig()
SLOTS = 16  # a cache has a multiple of this many slots: masks of fused attention are read in such blocks
EARLIER_KEYS = {"nothing": "null_embedding", "place": "position_embedding"}  # up to version 0.1


class Transformer(nn.Module):
    """Predicts the codes of a grid from the codes before them and an embedding.

    In raster order, a token holds a code and predicts the next one, and the first token, which is the
    condition, predicts the first code. In any other order, tokens hold and predict what a `Layout` says.

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
        self.raster = config.order == "raster"
        if not self.raster:  # the last row stands for no position
            self.target_embedding = nn.Parameter(torch.randn(self.positions + 1, width) * width**-0.5)
            self.no_code = nn.Parameter(torch.randn(width) * width**-0.5)
        if config.positions == "learned":
            places = self.prefix - 1 + self.positions if self.raster else self.positions + 1
            self.position_embedding = nn.Parameter(torch.randn(places, width) * 0.02)
        else:
            rotary = rotary_embedding(grid, config.width // config.heads, self.prefix if self.raster else 1)
            if not self.raster:
                rotary = rotary.roll(-1, dims=1)  # the last row stands for no position
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
        dropped: Tensor | None = None,
        layout: Layout | None = None,
    ) -> Tensor:
        """Compute the logits of the codes of whole sequences.

        Args:
            codes: The codes from the first on, int64 [n, s] (s may be 0). With a layout, those that its
                tokens hold, whatever where they hold none.
            embedding: The image's embedding, then its neighbour embeddings, float [n, 1 + neighbours, d].
            dropped: Rows whose embeddings are replaced by the null embedding, bool [n]
                (classifier-free guidance, arXiv:2207.12598).
            layout: What the tokens hold and predict, where the order is not raster.

        Returns:
            [n, s + 1, k]; with a layout [n, s, k].
        """
        x, global_condition = self._embed(codes, embedding, dropped, layout, first=True)
        if layout is None:
            places = slice(0, x.shape[1])
            x, view = self._in_raster(x, places), View(self._rotary_at(places), causal=True)
        else:  # the prefix is a step of its own
            steps = F.pad(layout.steps, (self.prefix, 0), value=NONE)
            mask = (steps.unsqueeze(2) >= steps.unsqueeze(1)).unsqueeze(1)
            view = View(self._rotary_of(layout, first=True), mask=mask)
        x = self._apply_blocks(x, global_condition, view)
        logits: Tensor = self.head(self.norm(x[:, self.offset :]))
        return logits

    @torch.no_grad()
    def decode(
        self,
        codes: Tensor,
        embedding: Tensor,
        dropped: Tensor,
        step: Step,
        cache: Sequence[Cache],
        blocks: Sequence[Callable[..., Tensor]] | None = None,
    ) -> Tensor:
        """Compute the logits of one step, from the codes of the steps before it.

        Args:
            codes: The codes that the step's tokens hold, int64 [n, s].
            embedding: As for `forward`.
            dropped: As for `forward`.
            step: The tokens of each row.
            cache: Keys and values of earlier steps, of each block; this call adds its own.
            blocks: Compiled blocks that are called in the place of the model's own.

        Returns:
            [n, step.predicted, k].
        """
        x, global_condition = self._embed(
            codes, embedding, dropped, None if self.raster else step, step.first
        )
        if self.raster:
            x, rotary = self._in_raster(x, step.slots), self._rotary_at(step.slots.unsqueeze(1))
        else:
            rotary = self._rotary_of(step, step.first)
        mask = torch.zeros_like(step.visible, dtype=x.dtype).masked_fill(~step.visible, -torch.inf)
        starts = torch.arange(0, len(x) * self.slots, self.slots, device=x.device).unsqueeze(1)
        view = View(rotary, mask=mask.unsqueeze(1), slots=(starts + step.slots).flatten(), reach=step.reach)
        x = self._apply_blocks(x, global_condition, view, cache, blocks)
        start = self.offset if step.first else 0
        logits: Tensor = self.head(self.norm(x[:, start : start + step.predicted]))
        return logits

    def _embed(
        self,
        codes: Tensor,
        embedding: Tensor,
        dropped: Tensor | None,
        layout: Layout | Step | None,
        first: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """The tokens [n, s, width], with the prefix at the `first` call, and the global condition
        [n, 1, width]."""
        if dropped is not None:
            embedding = torch.where(dropped.view(-1, 1, 1), self.null_embedding, embedding)
        embedding = embedding * self.embedding_dim**0.5
        token, global_condition = self.condition(embedding[:, :1]), None
        if self.config.condition == "everywhere":
            global_condition, token = token.chunk(2, dim=-1)
        x = self.codes(codes) if layout is None else self._holding(codes, layout)
        if first:
            neighbours = [self.neighbours(embedding[:, 1:])] if self.neighbours else []
            x = torch.cat([token, *neighbours, x], dim=1)
        return x, global_condition

    def _holding(self, codes: Tensor, layout: Layout | Step) -> Tensor:
        """The tokens of a layout [n, s, width]."""
        empty = (layout.positions == NONE).unsqueeze(-1)
        x = torch.where(empty, self.no_code, self.codes(codes.clamp(min=0)))
        x = x + self.target_embedding[layout.targets]
        return x + self.position_embedding[layout.positions] if self.config.positions == "learned" else x

    def _in_raster(self, x: Tensor, places: slice | Tensor) -> Tensor:
        """Tokens of raster order, which stand at these places of the sequence."""
        return x + self.position_embedding[places] if self.config.positions == "learned" else x

    def _rotary_at(self, places: slice | Tensor) -> tuple[Tensor, Tensor] | None:
        """Of queries and keys in raster order, both where the code is that the token holds."""
        if self.config.positions == "learned":
            return None
        rotary = self.rotary[:, places]
        return rotary, rotary

    def _rotary_of(self, layout: Layout | Step, first: bool) -> tuple[Tensor, Tensor] | None:
        """Queries stand where the code is that they predict, keys where the code is that they hold."""
        if self.config.positions == "learned":
            return None
        asked = torch.where(layout.targets == NONE, layout.positions, layout.targets)
        held = torch.where(layout.positions == NONE, layout.targets, layout.positions)
        if first:
            asked, held = (F.pad(places, (self.prefix, 0), value=NONE) for places in (asked, held))
        return self.rotary[:, asked].unsqueeze(2), self.rotary[:, held].unsqueeze(2)

    def _apply_blocks(
        self,
        x: Tensor,
        global_condition: Tensor | None,
        view: View,
        cache: Sequence[Cache] | None = None,
        blocks: Sequence[Callable[..., Tensor]] | None = None,
    ) -> Tensor:
        x = self.dropout(x if global_condition is None else x + global_condition)
        used: Iterable[Any] = blocks or self.blocks
        for layer, block in enumerate(used):
            if self.recompute and self.training:
                x = checkpoint(block, x, global_condition, view, use_reentrant=False)
            else:
                x = block(x, global_condition, view, cache[layer] if cache else None)
        return x

    def matrices(self) -> list[nn.Module]:
        """The modules whose 2-D weights are hidden layers, which Muon optimizes."""
        return [part for block in self.blocks for part in (block.attention, block.feed_forward)]  # type: ignore[misc]

    @property
    def positions(self) -> int:
        """Number of codes of an image."""
        return self.grid * self.grid

    @property
    def offset(self) -> int:
        """Tokens before the one that predicts the first code."""
        return self.prefix - 1 if self.raster else self.prefix

    @property
    def slots(self) -> int:
        """Slots of a cache: one a token, and at least one more, for tokens that no other attends to."""
        return (self.prefix + self.positions) // SLOTS * SLOTS + SLOTS

    def new_cache(self, rows: int) -> list[Cache]:
        """An empty cache of each block for a batch of `rows`, of the model's dtype and on its device."""
        config, like = self.config, self.gap.image_mean
        shape = (rows, self.slots, config.heads, config.width // config.heads)
        return [Cache(like.new_zeros(shape), like.new_zeros(shape)) for _ in self.blocks]


def _rename_earlier_keys(model: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """A load_state_dict pre-hook: checkpoints of earlier versions name some weights differently."""
    for earlier, name in EARLIER_KEYS.items():
        if prefix + earlier in state:
            state[prefix + name] = state.pop(prefix + earlier)
