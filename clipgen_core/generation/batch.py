"""Rows that are sampled together, each at a step of its own: rows join and leave between any two steps.

A step reads and writes the same tensors every time: which step each row takes stands in a tensor, too. On a
GPU, a step whose shape is known can so be recorded with all its kernels and replayed (CUDA graphs), which
takes the time of one launch instead of hundreds.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from clipgen_core.generation.choosing import Filters, choose, settings_of
from clipgen_core.generation.steps import Plan, Shape, shape_of, step_at
from clipgen_core.models.blocks import Cache
from clipgen_core.models.layout import NONE
from clipgen_core.models.transformer import Transformer
from clipgen_core.settings.sampling import SamplingConfig

Mode = Literal["eager", "fixed", "compiled"]

MOST_GRAPHS = 64  # they hold no weights, but kernels and their arguments
VARIANTS = 128  # shapes for which a block may be compiled


@dataclass(eq=False)
class Row:
    """An image that is being sampled.

    plan: Its steps.
    config: Guidance scale, temperature, top-k and top-p.
    owner: Whose it is.
    number: Which of the owner's.
    step: The step that comes next.
    """

    plan: Plan
    config: SamplingConfig
    owner: Any
    number: int
    step: int = 0

    @property
    def done(self) -> bool:
        """Whether all its codes are known."""
        return self.step == len(self.plan)


class Batch:
    """Rows that are sampled together. For one thread at a time.

    Args:
        model: In evaluation mode. Its weights may change between calls, in place.
        guided: Whether rows are also computed with the null embedding (classifier-free guidance). Each then
            has two lanes in the cache, one beside the other.
        mode: See `Sampler`.
        blocks: Compiled blocks of the model, for mode `compiled`.

    Attributes:
        rows: The rows, in the order of the tensors.
        codes: int64 [capacity, t + 1]; -1 where there is none yet. The last column takes what tokens without
            a target predict.
    """

    def __init__(
        self,
        model: Transformer,
        guided: bool,
        mode: Mode = "eager",
        blocks: Sequence[Callable[..., Tensor]] | None = None,
    ) -> None:
        self.model, self.mode, self.blocks = model, mode, blocks
        self.device = model.gap.image_mean.device
        self.lanes = 2 if guided else 1
        self.rows: list[Row] = []
        none = torch.zeros(0, dtype=torch.long, device=self.device)
        self.cache = model.new_cache(0)
        self.embeddings = model.gap.image_mean.new_zeros(0, model.prefix, model.embedding_dim)
        self.codes, self.now = none.new_zeros(0, model.positions + 1), none
        self.tokens = none.new_zeros(0, 3 * model.positions + model.prefix + 1)
        self.draws, self.settings = (
            torch.zeros(0, columns, device=self.device) for columns in (model.positions + 1, 4)
        )
        self.plans: dict[Plan, int] = {}
        self.table = self.tokens
        self.graphs = dict[tuple[object, ...], torch.cuda.CUDAGraph]()

    def _reserve(self, count: int) -> None:
        """Make room for `count` rows, up to a power of two; what was recorded is lost if there was less."""
        if count <= len(self.codes):
            return
        count = power_of_two(count)
        self.cache = [
            Cache(*(grown(one, count * self.lanes) for one in (cache.keys, cache.values)))
            for cache in self.cache
        ]
        for name in ("embeddings", "codes", "now", "tokens", "draws", "settings"):
            setattr(self, name, grown(getattr(self, name), count))
        self.graphs.clear()
        if self.device.type == "cuda":
            self.stream, self.pool = torch.cuda.Stream(self.device), torch.cuda.graph_pool_handle()

    def add(self, rows: Sequence[Row], embeddings: Tensor, draws: Tensor, codes: Tensor) -> None:
        """Let rows join, and take their first step.

        Args:
            rows: m of them.
            embeddings: Their conditions, float [m, 1 + neighbours, d].
            draws: Uniform random numbers, float32 [m, t] in [0, 1).
            codes: Those that are given, int64 [m, t], -1 where there is none.
        """
        start, stop = len(self.rows), len(self.rows) + len(rows)
        self._reserve(start + self._computed(len(rows)))
        self.embeddings[start:stop].copy_(embeddings)
        self.draws[start:stop, :-1].copy_(draws)
        self.codes[start:stop, :-1].copy_(codes)
        self.settings[start:stop].copy_(settings_of([row.config for row in rows]))
        self.rows += rows
        self._arrange()
        self._take_step(start, first=True)

    def advance(self) -> None:
        """Sample the codes of the next step of every row; none may be complete."""
        if self.rows:
            self._take_step(0, first=False)

    def remove(self, leaving: Callable[[Row], bool]) -> None:
        """Let rows leave; the last rows take their places.

        Args:
            leaving: Whether a row does.
        """
        staying = sum(not leaving(row) for row in self.rows)
        holes = [place for place, row in enumerate(self.rows[:staying]) if leaving(row)]
        moved = [place for place, row in enumerate(self.rows) if place >= staying and not leaving(row)]
        for hole, place in zip(holes, moved, strict=True):
            self.rows[hole] = self.rows[place]
            for tensor in (self.embeddings, self.codes, self.draws, self.settings):
                tensor[hole].copy_(tensor[place])
            for cache in self.cache:
                for tensor in (cache.keys, cache.values):
                    lanes = tensor.view(-1, self.lanes, *tensor.shape[1:])
                    lanes[hole].copy_(lanes[place])
        del self.rows[staying:]
        self._arrange()

    def _arrange(self) -> None:
        """Set which step of which plan each row takes next."""
        if {row.plan for row in self.rows} - self.plans.keys():
            plans = dict.fromkeys(row.plan for row in self.rows)
            self.table = torch.cat([plan.table for plan in plans]).to(self.device)
            self.plans, start = {}, 0
            for plan in plans:
                self.plans[plan], start = start, start + len(plan)
        next_steps = [self.plans[row.plan] + min(row.step, len(row.plan) - 1) for row in self.rows]
        self.now[: len(self.rows)] = torch.tensor(next_steps, dtype=torch.long, device=self.device)

    def _computed(self, rows: int) -> int:
        """How many rows are computed for so many: where shapes are fixed, the next power of two."""
        return rows if self.mode == "eager" else power_of_two(rows)

    def _take_step(self, start: int, *, first: bool) -> None:
        rows = self.rows[start:]
        shape = shape_of(self.model, [(row.plan, row.step) for row in rows], fixed=self.mode != "eager")
        filters = Filters.of([row.config for row in rows], self.model.head.out_features)
        computed = slice(start, start + self._computed(len(rows)))
        self.now[len(self.rows) : computed.stop] = self.now[start]  # rows that fill up do what the first does
        torch.index_select(self.table, 0, self.now[computed], out=self.tokens[computed])
        recorded = self.mode != "eager" and self.device.type == "cuda" and start == 0
        run = self._replay if recorded else self._compute
        with torch._dynamo.config.patch(recompile_limit=VARIANTS) if self.blocks else nullcontext():
            run(computed, shape, filters)
        self.now[computed].add_(1)
        for row in rows:
            row.step += 1

    @torch.no_grad()
    def _compute(self, rows: slice, shape: Shape, filters: Filters) -> None:
        n, lanes, t = rows.stop - rows.start, self.lanes, self.model.positions
        tokens, codes, settings = self.tokens[rows], self.codes[rows], self.settings[rows]
        step = step_at(self.model, tokens.repeat_interleave(lanes, dim=0), shape)
        held = step.held(codes.repeat_interleave(lanes, dim=0)).clamp(min=0)
        embeddings = self.embeddings[rows].repeat_interleave(lanes, dim=0)
        dropped = (torch.arange(lanes, device=self.device) > 0).repeat(n)
        cache = [one[lanes * rows.start : lanes * rows.stop] for one in self.cache]
        logits = self.model.decode(held, embeddings, dropped, step, cache, self.blocks).float()
        logits = logits.view(n, lanes, shape.predicted, -1)
        if lanes > 1:
            with_condition, without = logits.unbind(1)
            logits = without + settings[:, 0].view(-1, 1, 1) * (with_condition - without)
        else:
            logits = logits[:, 0]
        targets = step.targets[::lanes, : shape.predicted]
        targets = targets.masked_fill(targets == NONE, t)
        chosen = choose(logits, self.draws[rows].gather(1, targets), settings, filters)
        codes.scatter_(1, targets, chosen)

    def _replay(self, rows: slice, shape: Shape, filters: Filters) -> None:
        """As `_compute`: the first step of a shape runs as it is and is recorded for the others."""
        key = (rows.stop, shape, filters)
        if key in self.graphs:
            self.graphs[key].replay()
            return
        self._compute(rows, shape, filters)
        if len(self.graphs) == MOST_GRAPHS:
            self.graphs.clear()
        graph = torch.cuda.CUDAGraph()
        # The graphs of all shapes share memory: what a step leaves is in this object's tensors alone. Other
        # threads may use the GPU meanwhile.
        with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
            self._compute(rows, shape, filters)
        self.graphs[key] = graph


def grown(tensor: Tensor, rows: int) -> Tensor:
    """The tensor with more rows, which are zeros.

    Args:
        tensor: Of any shape [n, ...].
        rows: How many it shall have, n at least.

    Returns:
        A new tensor.
    """
    return torch.cat([tensor, tensor.new_zeros(rows - len(tensor), *tensor.shape[1:])])


def power_of_two(count: int) -> int:
    """The least power of two that is as large."""
    return 1 << (count - 1).bit_length()
