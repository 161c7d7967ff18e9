"""Sampling codes for several callers: which rows join the running ones, and when they are complete.

Knows how to call the transformer; knows neither what conditions it nor what the codes show.
"""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipgen_core.errors import ClipgenError
from clipgen_core.generation.batch import Batch, Mode, Row
from clipgen_core.generation.choosing import uniform_draws
from clipgen_core.generation.steps import Plan, plan_of
from clipgen_core.models.layout import NONE
from clipgen_core.models.transformer import Transformer
from clipgen_core.settings.sampling import SamplingConfig

OnStep = Callable[[Tensor], None]

SHARE = 8  # rows that are sampled together take an eighth of the GPU's free memory at most
CPU_BYTES = 2 * 1024**3  # and this much of a CPU's
LOGIT_BYTES = 48  # of a logit and what `choose` makes of it, in float32 and float64
MOST_ROWS = {"cuda": 512, "cpu": 128}  # more at once are not faster
MOST_WAITING = 256  # samplings that are not complete


class Busy(ClipgenError):
    """More is being sampled than may wait."""


@dataclass(eq=False)
class Job:
    """What one call samples.

    embeddings: The conditions, float [n, 1 + neighbours, d].
    seeds: One a row [n].
    config: The settings of all rows.
    plan: The steps of all rows.
    codes: What is given or known of the result, int64 [n, t]; -1 where there is no code yet.
    caller: Who asks; jobs of one caller share its turns.
    watched: Whether `codes` is wanted after each step; otherwise it is only when all rows are complete.
    begun: Rows that have joined the running ones.
    complete: Rows whose codes are all known.
    """

    embeddings: Tensor
    seeds: Sequence[int]
    config: SamplingConfig
    plan: Plan
    codes: Tensor
    caller: str = ""
    watched: bool = False
    begun: int = 0
    complete: int = 0

    @property
    def done(self) -> bool:
        """Whether all rows are complete."""
        return self.complete == len(self.codes)


class Sampler:
    """Samples codes with one transformer. Rows join and leave between steps. For one thread at a time.

    Args:
        model: In evaluation mode. Its weights may change between calls, in place.
        mode: How steps run; none changes what is computed. `eager`: kernel by kernel, each step no larger
            than it must be; the fastest on CPUs and the default there. `fixed`: in few shapes, with rows
            filled up to powers of two; on GPUs, where it is the default, each is recorded at its first use as
            a CUDA graph and replayed. `compiled`: `fixed`, with blocks compiled by `torch.compile`, which
            takes seconds for every shape when it is first used.
        share: Of the rows that fit, how many one caller may have at once; others then never wait for it to
            end.
    """

    def __init__(self, model: Transformer, mode: Mode | None = None, share: float = 1.0) -> None:
        self.model, self.device, self.share = model, model.gap.image_mean.device, share
        self.mode: Mode = mode or ("fixed" if self.device.type == "cuda" else "eager")
        self.memory = memory_for_rows(self.device)
        self.blocks: list[Callable[..., Tensor]] | None = None
        if self.mode == "compiled":  # all blocks share what is compiled for one
            self.blocks = [torch.compile(one, fullgraph=True, dynamic=False) for one in model.blocks]
        self.jobs: list[Job] = []
        self._batches: dict[bool, Batch] = {}
        self._plan = functools.lru_cache(64)(functools.partial(plan_of, model))  # equal ones are the same

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
        job = self.job(embeddings, seeds, config, known=known)
        job.watched = on_step is not None
        self.add(job)
        try:
            while not job.done:
                self.advance()
                if on_step:
                    on_step(job.codes.clone())
        finally:
            self.remove(job)
        return job.codes

    def job(
        self,
        embeddings: Tensor,
        seeds: Sequence[int],
        config: SamplingConfig,
        *,
        known: Tensor | None = None,
        caller: str = "",
    ) -> Job:
        """What is to be sampled, for `add`. Any thread may call this.

        Args:
            embeddings, seeds, config, known: As for `sample_codes`.
            caller: Who asks.

        Returns:
            The job.

        Raises:
            ClipgenError: As `sample_codes`.
        """
        given = () if known is None else tuple((known[0] != NONE).nonzero().flatten().tolist())
        plan = self._plan(config.steps, given)
        shape = (len(seeds), self.model.positions)
        codes = torch.full(shape, NONE, device=self.device) if known is None else known.clone()
        return Job(embeddings, seeds, config, plan, codes, caller)

    def add(self, job: Job) -> None:
        """Let a job wait for its turn.

        Raises:
            Busy: Too many do.
        """
        if len(self.jobs) >= MOST_WAITING:
            raise Busy(f"{len(self.jobs)} requests are being worked on: try again later")
        self.jobs.append(job)

    def remove(self, job: Job) -> None:
        """Forget a job; its rows make room at once."""
        if job in self.jobs:
            self.jobs.remove(job)
        for batch in self._batches.values():
            batch.remove(lambda row: row.owner is job)
        if not self.jobs and self.mode == "eager":
            self._batches.clear()  # and their caches; other modes have recorded them

    def advance(self) -> None:
        """One step of every row that runs, and the first step of those that join."""
        for batch in self._batches.values():
            batch.advance()
        while admitted := self._next():
            self._begin(*admitted)
        for batch in self._batches.values():
            self._take_codes(batch)
        self.jobs = [job for job in self.jobs if not job.done]

    def _next(self) -> tuple[Job, int] | None:
        """The job whose turn it is, and how many of its rows may join."""
        waiting = [job for job in self.jobs if job.begun < len(job.codes)]
        if not waiting:
            return None
        running = Counter(row.owner.caller for batch in self._batches.values() for row in batch.rows)
        for job in sorted(waiting, key=lambda job: running[job.caller]):  # of equal ones, the oldest first
            most = self._capacity(job)
            room = min(most - running.total(), max(int(most * self.share), 1) - running[job.caller])
            if room > 0:
                return job, min(room, len(job.codes) - job.begun)
        return None

    def _capacity(self, joining: Job) -> int:
        """How many rows may run when those of a job do."""
        plans = {joining.plan, *(row.plan for batch in self._batches.values() for row in batch.rows)}
        predicted = max(max(plan.predicted) for plan in plans)
        return rows_at_once(self.model, predicted, joining.config.guidance_scale != 1.0, self.memory)

    def _begin(self, job: Job, count: int) -> None:
        guided = job.config.guidance_scale != 1.0
        if guided not in self._batches:
            self._batches[guided] = Batch(self.model, guided, self.mode, self.blocks)
        part = slice(job.begun, job.begun + count)
        rows = [Row(job.plan, job.config, job, number) for number in range(part.start, part.stop)]
        draws = torch.from_numpy(uniform_draws(job.seeds[part], self.model.positions))
        self._batches[guided].add(rows, job.embeddings[part], draws, job.codes[part])
        job.begun += count

    def _take_codes(self, batch: Batch) -> None:
        """Give jobs the codes that they want to see, and those of complete rows, which leave."""
        places = dict[Job, list[int]]()
        for place, row in enumerate(batch.rows):
            if row.done or row.owner.watched:
                places.setdefault(row.owner, []).append(place)
        for job, taken in places.items():
            job.codes[[batch.rows[place].number for place in taken]] = batch.codes[taken, :-1]
            job.complete += sum(batch.rows[place].done for place in taken)
        if any(row.done for row in batch.rows):
            batch.remove(lambda row: row.done)


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


def rows_at_once(model: Transformer, predicted: int, guided: bool, memory: int) -> int:
    """How many rows are sampled together.

    Args:
        model: The transformer.
        predicted: How many codes a row predicts in one step, at most.
        guided: Whether each row is computed twice.
        memory: For their caches and logits, in bytes.

    Returns:
        A power of two.
    """
    config, like = model.config, model.gap.image_mean
    cache = 2 * config.layers * model.slots * config.width * like.element_size()
    logits = predicted * model.head.out_features * LOGIT_BYTES
    count = int(memory / (cache * (2 if guided else 1) + logits))
    return min(1 << max(count.bit_length() - 1, 0), MOST_ROWS.get(like.device.type, MOST_ROWS["cpu"]))


def memory_for_rows(device: torch.device) -> int:
    """The bytes that rows which are sampled together may take on a device."""
    if device.type != "cuda":
        return CPU_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (free + unused) // SHARE
