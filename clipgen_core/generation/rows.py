"""Rows that are sampled together: the tensors of a sampling, and one step of it.

A step reads and writes the same tensors every time: which of the steps it is stands in a tensor, too. On a
GPU, a step whose shape is known can so be recorded with all its kernels and replayed (CUDA graphs), which
takes the time of one launch instead of hundreds.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from clipgen_core.generation.choosing import choose
from clipgen_core.generation.steps import Plan, Shape, step_at
from clipgen_core.models.layout import NONE
from clipgen_core.models.transformer import Transformer
from clipgen_core.settings.sampling import SamplingConfig

MOST_GRAPHS = 64  # of one `Rows`; they hold no weights, but kernels and their arguments


class Rows:
    """Rows that are sampled together.

    Args:
        model: In evaluation mode.
        count: Number of rows n.
        guided: Whether each is also computed with the null embedding (classifier-free guidance).
        blocks: Compiled blocks of the model, if they are to be used.

    Attributes:
        codes: int64 [n, t + 1]; -1 where there is none yet. The last column takes what tokens without a
            target predict.
    """

    def __init__(
        self,
        model: Transformer,
        count: int,
        guided: bool,
        blocks: Sequence[Callable[..., Tensor]] | None = None,
    ) -> None:
        self.model, self.guided, self.blocks = model, guided, blocks
        like, t, both = model.gap.image_mean, model.positions, 2 * count if guided else count
        self.cache = model.new_cache(both)
        self.embeddings = like.new_zeros(both, model.prefix, model.embedding_dim)
        self.dropped = torch.arange(both, device=like.device) >= count
        self.codes = torch.full((count, t + 1), NONE, device=like.device)
        self.draws = torch.zeros(count, t + 1, device=like.device)
        self.table = torch.zeros(t, 3 * t + model.prefix + 1, dtype=torch.long, device=like.device)
        self.now = torch.zeros(1, dtype=torch.long, device=like.device)
        self.graphs = dict[tuple[object, ...], torch.cuda.CUDAGraph]()
        if like.is_cuda:
            self.stream, self.pool = torch.cuda.Stream(like.device), torch.cuda.graph_pool_handle()

    def begin(self, plan: Plan, embeddings: Tensor, draws: Tensor, known: Tensor | None = None) -> None:
        """Set what the next steps read.

        Args:
            plan: The steps.
            embeddings: The conditions, float [m, 1 + neighbours, d]; with fewer rows than these, m <= n, the
                last one fills up.
            draws: Uniform random numbers, float32 [m, t] in [0, 1).
            known: Codes that are given, int64 [m, t], -1 where there is none.
        """
        count, given = len(self.codes), len(embeddings)
        rows = torch.arange(count, device=embeddings.device).clamp(max=given - 1)
        embeddings = embeddings[rows]
        self.embeddings.copy_(embeddings.repeat(2, 1, 1) if self.guided else embeddings)
        self.draws[:given, :-1].copy_(draws)
        self.codes.fill_(NONE)
        if known is not None:
            self.codes[:, :-1].copy_(known[rows])
        self.table[: len(plan.table)].copy_(plan.table)
        self.now.zero_()

    def advance(self, shape: Shape, config: SamplingConfig) -> None:
        """Sample the codes of the next step.

        Args:
            shape: The step's.
            config: Guidance scale, temperature, top-k and top-p.
        """
        step = step_at(self.model, self.table.index_select(0, self.now)[0], shape)
        held = step.held(self.codes)
        held = held.repeat(2, 1) if self.guided else held
        logits = self.model.decode(held, self.embeddings, self.dropped, step, self.cache, self.blocks).float()
        if self.guided:
            with_condition, without = logits.chunk(2)
            logits = without + config.guidance_scale * (with_condition - without)
        targets = step.targets[:, : shape.predicted]
        targets = targets.masked_fill(targets == NONE, self.model.positions).expand(len(self.codes), -1)
        chosen = choose(logits.flatten(0, 1), self.draws.gather(1, targets).flatten(), config)
        self.codes.scatter_(1, targets, chosen.view_as(targets))
        self.now.add_(1)

    def replay(self, shape: Shape, config: SamplingConfig) -> None:
        """As `advance`, on a GPU: the first step of a shape runs as it is and is recorded for the others.

        Args:
            shape: The step's, of a plan whose shapes are `fixed`.
            config: Guidance scale, temperature, top-k and top-p; they are recorded, too.
        """
        key = (shape, config.guidance_scale, config.temperature, config.top_k, config.top_p)
        if key in self.graphs:
            self.graphs[key].replay()
            return
        self.advance(shape, config)
        if len(self.graphs) == MOST_GRAPHS:
            self.graphs.clear()
        graph = torch.cuda.CUDAGraph()
        # The graphs of all shapes share memory: what a step leaves is in this object's tensors alone. Other
        # threads may use the GPU meanwhile, as the page does for previews.
        with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
            self.advance(shape, config)
        self.graphs[key] = graph
