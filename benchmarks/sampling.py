"""Sampling 256 codes at the shape `b`: raster and any order beside two ways of public implementations."""

import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.baseline import PlainGpt
from benchmarks.static_cache import StaticCacheGpt
from benchmarks.timing import Row, in_turn, ratio, seconds
from clipgen_core.device import default_device, fast_dtype
from clipgen_core.generation.batch import Mode
from clipgen_core.generation.sampling import Sampler
from clipgen_core.models.shapes import TRANSFORMERS
from clipgen_core.models.transformer import Transformer
from clipgen_core.settings.models import TransformerConfig
from clipgen_core.settings.sampling import SamplingConfig

CODES, GRID, DIM, TOP_K, GUIDANCE = 16384, 16, 512, 500, 2.0
T = GRID * GRID
STEPS = (20, 32, 64)


def sampling(layers: int, batch: int = 4) -> list[Row]:
    """Seconds of raster order and of any order against a static cache and against no cache, with guidance.

    All have the same width, layers and dtype, and untrained weights. Without a cache, every 32nd prefix
    length is timed, and the others are interpolated. On a GPU, the modes of `Sampler` are compared.

    Args:
        layers: Of the shape's 12.
        batch: Images at once.

    Returns:
        The ratios, and the latency of a code.
    """
    device = default_device()
    dtype = fast_dtype(device)
    shape = TRANSFORMERS["b"].model_copy(update={"layers": layers, "dropout": 0.0})
    embedding = F.normalize(torch.randn(batch, 1, DIM, device=device), dim=-1)
    static = StaticCacheGpt(shape, CODES, GRID, DIM).eval().to(device, dtype)
    raster, any_order = (_model(shape, order).to(device, dtype) for order in ("raster", "any"))

    def ours(
        model: Transformer, steps: int, rows: int = batch, guidance: float = GUIDANCE
    ) -> Callable[[], None]:
        return work(Sampler(model), embedding[:rows], steps, guidance)

    works = [
        lambda: void(static.sample(embedding[:, 0].to(dtype), GUIDANCE, TOP_K)),
        ours(raster, 0),
        *(ours(any_order, steps) for steps in STEPS),
        ours(raster, 0, guidance=1.0),
        ours(raster, 0, rows=1, guidance=1.0),
    ]
    baseline, in_raster, *in_steps, unguided, single = in_turn(*works, rounds=3)
    named = f"{layers} layers, {T} codes, batch {batch}, guidance {GUIDANCE}, {dtype}".replace("torch.", "")

    def against(other: list[float], times: list[float]) -> str:
        return f"{statistics.median(times):.2f} against {statistics.median(other):.2f} s"

    rows = [
        Row(
            "sampling",
            "static cache / raster",
            ratio(baseline, in_raster),
            "x",
            "reported",
            f"{named}: {against(baseline, in_raster)}",
        )
    ]
    for steps, times in zip(STEPS, in_steps, strict=True):
        bar = ">= 6" if steps == STEPS[0] else "reported"
        rows.append(
            Row(
                "sampling",
                f"static cache / any order, {steps} steps",
                ratio(baseline, times),
                "x",
                bar,
                against(baseline, times),
            )
        )
    no_cache = _without_cache(shape, embedding[:, 0])
    rows.append(
        Row(
            "sampling",
            "no cache fp32 / raster, unguided",
            no_cache / statistics.median(unguided),
            "x",
            ">= 10",
            f"{statistics.median(unguided):.2f} against {no_cache:.0f} s (interpolated)",
        )
    )
    rows.append(
        Row("sampling", "guided / unguided", ratio(in_raster, unguided), "x", "<= 2.1", f"batch {batch}")
    )
    latency = 1000 * statistics.median(single) / T
    rows.append(Row("sampling", "latency of a code, batch 1", latency, "ms", "reported", "unguided"))
    return rows if torch.device(device).type == "cpu" else [*rows, *modes(raster, any_order, embedding)]


def modes(raster: Transformer, any_order: Transformer, embedding: Tensor) -> list[Row]:
    """How steps run on a GPU: kernel by kernel, recorded as CUDA graphs, and compiled besides, with guidance.

    Args:
        raster: A model of raster order, timed with one row.
        any_order: A model of any order, timed with all rows.
        embedding: Float [n, 1, d].

    Returns:
        The ratios.
    """
    rows = []
    for model, steps, batch in ((raster, 0, 1), (any_order, STEPS[0], len(embedding))):
        named: tuple[Mode, ...] = ("eager", "fixed", "compiled")
        works = [work(Sampler(model, mode), embedding[:batch], steps) for mode in named]
        eager, *faster = in_turn(*works, rounds=3)
        for mode, times in zip(named[1:], faster, strict=True):
            what = f"eager / {mode}, {model.config.order}, batch {batch}"
            bar = ">= 5" if model.raster and mode == "compiled" else "reported"
            detail = f"{statistics.median(times):.3f} against {statistics.median(eager):.3f} s"
            rows.append(Row("sampling", what, ratio(eager, times), "x", bar, detail))
    return rows


def work(sampler: Sampler, embedding: Tensor, steps: int, guidance: float = GUIDANCE) -> Callable[[], None]:
    """One call of a sampler, for the timer.

    Args:
        sampler: The model, and how its steps run.
        embedding: Float [n, 1, d].
        steps: How many; 0 for the default.
        guidance: Scale of classifier-free guidance.

    Returns:
        The call.
    """
    config = SamplingConfig(guidance_scale=guidance, top_k=TOP_K, steps=steps)
    return lambda: void(sampler(embedding, range(len(embedding)), config))


def void(_: Tensor) -> None:
    """Drop a result, for the timer."""


def _model(shape: TransformerConfig, order: str) -> Transformer:
    return Transformer(shape.model_copy(update={"order": order}), CODES, GRID, DIM).eval()


def _without_cache(shape: TransformerConfig, embedding: Tensor) -> float:
    plain = PlainGpt(shape, CODES, T, DIM).eval().to(embedding.device)
    lengths = [0, *range(31, T, 32)]
    times = []
    for length in lengths:
        codes = torch.randint(CODES, (len(embedding), length), device=embedding.device)
        times.append(seconds(lambda codes=codes: plain.next_codes(codes, embedding)))  # type: ignore[misc]
    spans = zip(lengths, lengths[1:], times, times[1:], strict=False)
    return times[0] + sum((b - a) * (x + y) / 2 for a, b, x, y in spans)
