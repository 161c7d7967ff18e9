"""Sampling codes: in which steps, how many rows at once, and what is kept for the next call.

Knows how to call the transformer; knows neither what conditions it nor what the codes show.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from clipgen_core.generation.choosing import uniform_draws
from clipgen_core.generation.rows import Rows
from clipgen_core.generation.steps import Plan, Shape, plan_of
from clipgen_core.models.layout import NONE
from clipgen_core.models.transformer import Transformer
from clipgen_core.settings.sampling import SamplingConfig

Mode = Literal["eager", "fixed", "compiled"]
OnStep = Callable[[Tensor], None]

KEPT = 4  # numbers of rows whose tensors and recorded steps are kept
SHARE = 8  # rows that are sampled together take an eighth of the GPU's free memory at most
CPU_BYTES = 2 * 1024**3  # and this much of a CPU's
LOGIT_BYTES = 48  # of a logit and what `choose` makes of it, in float32 and float64
MOST_ROWS = 512  # more at once are not faster
VARIANTS = 128  # shapes for which a block may be compiled


class Sampler:
    """Samples codes with one transformer; keeps what the next calls can use again. For one thread at a time.

    Args:
        model: In evaluation mode. Its weights may change between calls, in place.
        mode: How steps run; none changes what is computed. `eager`: kernel by kernel, each step no larger
            than it must be; the fastest on CPUs and the default there. `fixed`: in few shapes, with rows
            filled up to powers of two; on GPUs, where it is the default, each is recorded at its first use as
            a CUDA graph and replayed. `compiled`: `fixed`, with blocks compiled by `torch.compile`, which
            takes seconds for every shape when it is first used.
    """

    def __init__(self, model: Transformer, mode: Mode | None = None) -> None:
        self.model, self.device = model, model.gap.image_mean.device
        self.mode: Mode = mode or ("fixed" if self.device.type == "cuda" else "eager")
        self.memory = memory_for_rows(self.device)
        self.blocks: list[Callable[..., Tensor]] | None = None
        if self.mode == "compiled":  # all blocks share what is compiled for one
            self.blocks = [torch.compile(one, fullgraph=True, dynamic=False) for one in model.blocks]
        self._kept = OrderedDict[tuple[int, bool], Rows]()

    @torch.no_grad()
    def __call__(
        self,
        embeddings: Tensor,
        seeds: Sequence[int],
        config: SamplingConfig,
        *,
        known: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Sample one grid of codes a row; see `sample_codes`.

        Args:
            embeddings, seeds, config, known, on_step: As for `sample_codes`.

        Returns:
            int64 [n, t].

        Raises:
            ClipgenError: As `sample_codes`.
        """
        plan = plan_of(self.model, config.steps, known, fixed=self.mode != "eager")
        draws = torch.from_numpy(uniform_draws(seeds, self.model.positions))
        codes = torch.full(draws.shape, NONE, device=self.device) if known is None else known.clone()
        guided = config.guidance_scale != 1.0
        most = rows_at_once(self.model, plan, guided, self.memory)
        for start in range(0, len(codes), most):
            part = slice(start, start + most)
            rows = self._rows(len(codes[part]), guided)
            rows.begin(plan, embeddings[part], draws[part], None if known is None else known[part])
            for shape in plan.shapes:
                self._run(rows, shape, config)
                if on_step:
                    codes[part] = rows.codes[: len(codes[part]), :-1]
                    on_step(codes.clone())
            codes[part] = rows.codes[: len(codes[part]), :-1]
        return codes

    def _rows(self, count: int, guided: bool) -> Rows:
        """Tensors for so many rows, or more."""
        if self.mode == "eager":
            return Rows(self.model, count, guided)
        key = (power_of_two(count), guided)
        if key not in self._kept:
            if len(self._kept) == KEPT:
                self._kept.popitem(last=False)
            self._kept[key] = Rows(self.model, *key, self.blocks)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _run(self, rows: Rows, shape: Shape, config: SamplingConfig) -> None:
        run = rows.replay if self.mode != "eager" and self.device.type == "cuda" else rows.advance
        if self.mode != "compiled":
            return run(shape, config)
        with torch._dynamo.config.patch(recompile_limit=VARIANTS):
            return run(shape, config)


def sample_codes(
    model: Transformer,
    embeddings: Tensor,
    seeds: Sequence[int],
    config: SamplingConfig,
    *,
    known: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample one grid of codes a row.

    A row's codes depend on its embedding, its seed and its known codes, not on the other rows.

    Args:
        model: In evaluation mode.
        embeddings: The conditions, float [n, 1 + neighbours, d], as `Conditioner` gives them.
        seeds: One a row.
        config: Steps, guidance, temperature, top-k and top-p.
        known: Codes that are given, int64 [n, t], -1 at the same positions of every row where a code is to
            be sampled; only for models of any order.
        on_step: Called with the codes so far, int64 [n, t], -1 where there is none yet; an error that it
            raises ends the sampling. Where there are too many rows for the memory, some are complete before
            others begin.

    Returns:
        int64 [n, t].

    Raises:
        ClipgenError: The model cannot take so many steps, or no known codes.
    """
    return Sampler(model, "eager")(embeddings, seeds, config, known=known, on_step=on_step)


def rows_at_once(model: Transformer, plan: Plan, guided: bool, memory: int) -> int:
    """How many rows are sampled together.

    Args:
        model: The transformer.
        plan: Its steps.
        guided: Whether each row is computed twice.
        memory: For their caches and logits, in bytes.

    Returns:
        A power of two, so that parts of many rows have one shape.
    """
    config, bytes_each = model.config, model.gap.image_mean.element_size()
    cache = 2 * config.layers * model.slots * config.width * bytes_each
    logits = max(shape.predicted for shape in plan.shapes) * model.head.out_features * LOGIT_BYTES
    count = int(memory / (cache * (2 if guided else 1) + logits))
    return min(1 << max(count.bit_length() - 1, 0), MOST_ROWS)


def memory_for_rows(device: torch.device) -> int:
    """The bytes that rows which are sampled together may take on a device."""
    if device.type != "cuda":
        return CPU_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (free + unused) // SHARE


def power_of_two(count: int) -> int:
    """The least power of two that is as large."""
    return 1 << (count - 1).bit_length()
