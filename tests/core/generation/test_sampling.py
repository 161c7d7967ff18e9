import functools
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipgen_core.generation import sampling
from clipgen_core.generation.batch import Mode
from clipgen_core.generation.choosing import Filters, draw, filter_logits, settings_of, uniform_draws
from clipgen_core.generation.sampling import Sampler, rows_at_once, sample_codes
from clipgen_core.generation.steps import plan_of
from clipgen_core.models.layout import NONE
from clipgen_core.models.transformer import Transformer
from clipgen_core.settings.models import TransformerConfig
from clipgen_core.settings.sampling import SamplingConfig

CODES, GRID, DIM = 11, 3, 6
POSITIONS = GRID * GRID


def of_order(order: str, neighbours: int = 0) -> Transformer:
    torch.manual_seed(3)
    config = TransformerConfig(width=32, layers=2, heads=2, order=order, neighbours=neighbours)  # type: ignore[arg-type]
    made = Transformer(config, CODES, GRID, DIM).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return made


@pytest.fixture(scope="module")
def model() -> Transformer:
    return of_order("raster")


def embeddings(rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.nn.functional.normalize(torch.randn(rows, 1, DIM, generator=generator), dim=-1)


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 3.0])
def test_a_code_is_drawn_from_the_logits_of_the_codes_before_it(
    model: Transformer, guidance_scale: float
) -> None:
    config = SamplingConfig(guidance_scale=guidance_scale, temperature=1.0)
    codes, draws = sample_codes(model, embeddings(5), range(5), config), uniform_draws(range(5), POSITIONS)
    assert codes.shape == (5, POSITIONS) and len(codes.unique(dim=0)) > 1
    with torch.no_grad():
        given = model(codes[:, :-1], embeddings(5))
        without = model(codes[:, :-1], embeddings(5), dropped=torch.ones(5, dtype=torch.bool))
    logits = without + guidance_scale * (given - without)
    again = draw(logits.flatten(0, 1), torch.from_numpy(draws).flatten()).view(5, -1)
    assert torch.equal(codes, again)


@pytest.fixture(scope="module")
def any_order() -> Transformer:
    return of_order("any")


@pytest.mark.parametrize("steps", [0, 1, 4, 9])
def test_any_number_of_steps_fills_the_grid_and_rows_stay_independent(
    any_order: Transformer, steps: int
) -> None:
    config, seen = SamplingConfig(steps=steps), list[torch.Tensor]()
    together = sample_codes(any_order, embeddings(4), [1, 2, 3, 4], config, on_step=seen.append)
    alone = sample_codes(any_order, embeddings(4)[2:3], [3], config)
    assert torch.equal(together[2:3], alone)
    assert together.min() >= 0 and torch.equal(seen[-1], together)
    assert len(seen) == (steps or 2 * GRID)
    for earlier, later in pairwise(seen):
        known = earlier != NONE
        assert torch.equal(earlier[known], later[known]) and (later != NONE).sum() > known.sum()


def test_known_codes_stay_and_the_others_depend_on_them(any_order: Transformer) -> None:
    known = torch.full((2, POSITIONS), NONE)
    known[:, 2:7] = torch.tensor([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])
    condition = embeddings(1).expand(2, -1, -1)
    codes = sample_codes(any_order, condition, [1, 1], SamplingConfig(guidance_scale=1.0), known=known)
    assert torch.equal(codes[:, 2:7], known[:, 2:7]) and codes.min() >= 0
    free = [0, 1, 7, 8]
    assert not torch.equal(codes[0, free], codes[1, free])


def test_a_row_does_not_depend_on_the_rows_beside_it(model: Transformer) -> None:
    config = SamplingConfig()
    together = sample_codes(model, embeddings(4), [1, 2, 3, 4], config)
    alone = sample_codes(model, embeddings(4)[2:3], [3], config)
    assert torch.equal(together[2:3], alone)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize("order", ["raster", "annealed", "any", "editing", "neighbours"])
def test_steps_of_few_shapes_give_the_same_codes(order: str, guidance_scale: float) -> None:
    model = of_order(
        {"editing": "any", "neighbours": "raster"}.get(order, order), 2 * (order == "neighbours")
    )
    config, known = SamplingConfig(guidance_scale=guidance_scale, top_k=5, top_p=0.9), None
    if order == "editing":
        known = torch.full((5, POSITIONS), NONE)
        known[:, 1:6] = torch.arange(25).view(5, 5) % CODES
    rows, sampler = embeddings(5).repeat(1, model.prefix, 1), Sampler(model, "fixed")
    for seeds in (range(5), range(5, 10)):  # what is kept of one sampling does not reach the next
        expected = sample_codes(model, rows, seeds, config, known=known)
        assert torch.equal(sampler(rows, seeds, config, known=known), expected)
        assert torch.equal(
            sampler(rows[:3], seeds[:3], config, known=known if known is None else known[:3]), expected[:3]
        )


def test_compiled_steps_give_the_same_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as for a GPU, but run by PyTorch's own kernels: compiling others takes minutes on a CPU."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    model, config = of_order("any"), SamplingConfig(steps=2)
    sampler = Sampler(model, "compiled")
    torch._dynamo.utils.counters.clear()
    for seeds in ([0, 1], [2, 3]):
        expected = sample_codes(model, embeddings(2), seeds, config)
        assert torch.equal(sampler(embeddings(2), seeds, config), expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2, (
        "one a shape, for all blocks and calls"
    )


@pytest.mark.parametrize("mode", ["eager", "fixed"])
def test_rows_that_do_not_fit_into_memory_wait(
    any_order: Transformer, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, seen = SamplingConfig(), list[torch.Tensor]()
    expected = sample_codes(any_order, embeddings(5), range(5), config)
    plan = plan_of(any_order, 0)
    most = max(plan.predicted)
    memory = next(size for size in range(0, 10**7, 1000) if rows_at_once(any_order, most, True, size) == 2)
    monkeypatch.setattr(sampling, "CPU_BYTES", memory)
    codes = Sampler(any_order, mode)(embeddings(5), range(5), config, on_step=seen.append)
    assert torch.equal(codes, expected) and torch.equal(seen[-1], expected)
    assert len(seen) == 3 * len(plan)
    complete = [(one != NONE).all(dim=1).tolist() for one in seen]
    assert complete[len(plan) - 1] == [True, True, False, False, False]
    assert all(
        (earlier[earlier != NONE] == later[earlier != NONE]).all() for earlier, later in pairwise(seen)
    )


def test_memory_bounds_the_rows() -> None:
    model = Transformer(TransformerConfig(width=256, layers=8, heads=2), 100, 16, 8)
    assert rows_at_once(model, 1, True, 1) == 1
    assert rows_at_once(model, 1, False, 10**8) == 2 * rows_at_once(model, 1, True, 10**8) > 10
    assert rows_at_once(model, 1, False, 10**8) > rows_at_once(model, 4096, False, 10**8)
    assert rows_at_once(model, 1, False, 10**15) == sampling.MOST_ROWS["cpu"]


def test_the_embedding_and_the_seed_matter(model: Transformer) -> None:
    config = SamplingConfig(guidance_scale=1.0)
    base = sample_codes(model, embeddings(2), [1, 1], config)
    assert not torch.equal(base[0], base[1])
    assert not torch.equal(base, sample_codes(model, embeddings(2), [5, 6], config))


def test_guidance_zero_ignores_the_embedding(model: Transformer) -> None:
    codes = sample_codes(model, embeddings(2), [1, 1], SamplingConfig(guidance_scale=0.0))
    assert torch.equal(codes[0], codes[1])


def test_top_k_one_is_greedy(model: Transformer) -> None:
    config = SamplingConfig(top_k=1, guidance_scale=1.0)
    one, other = (sample_codes(model, embeddings(2), seeds, config) for seeds in ([1, 2], [3, 4]))
    assert torch.equal(one, other)


def test_progress_is_reported_for_every_code(model: Transformer) -> None:
    seen: list[torch.Tensor] = []
    codes = sample_codes(model, embeddings(1), [0], SamplingConfig(), on_step=seen.append)
    assert [int((one != NONE).sum()) for one in seen] == list(range(1, POSITIONS + 1))
    assert all(torch.equal(one[:, : i + 1], codes[:, : i + 1]) for i, one in enumerate(seen))


def filtered(logits: torch.Tensor, *configs: SamplingConfig) -> torch.Tensor:
    """Each row of the logits by its config."""
    filters = Filters.of(configs, logits.shape[-1])
    return filter_logits(logits.unsqueeze(1), settings_of(configs), filters).squeeze(1)


def test_every_row_is_filtered_by_its_own_settings() -> None:
    logits = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    configs = [
        SamplingConfig(),
        *(SamplingConfig(top_k=k, top_p=p) for k, p in ((3, 1), (0, 0.5), (12, 0.9), (99, 0.2))),
    ]
    alone = [filtered(row[None], config) for row, config in zip(logits, configs, strict=True)]
    assert torch.equal(filtered(logits, *configs), torch.cat(alone))
    assert alone[0].isfinite().all() and alone[1].isfinite().sum() == 3


@settings(max_examples=50)
@given(st.lists(st.floats(-8, 8), min_size=3, max_size=12), st.integers(1, 5), st.floats(0.05, 1.0))
def test_filters_keep_the_likeliest_and_never_everything_out(
    values: list[float], top_k: int, top_p: float
) -> None:
    logits = torch.tensor([values])
    kept = filtered(logits, SamplingConfig(top_k=top_k, top_p=top_p)).isfinite()[0]
    assert kept[logits.argmax()]
    if kept.sum() < len(values):
        assert logits[0][kept].min() >= logits[0][~kept].max()
    assert kept.sum() <= max(top_k, (logits[0] >= logits[0].topk(min(top_k, len(values))).values[-1]).sum())


def test_top_p_keeps_the_fewest_that_hold_the_mass() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    for top_p, count in ((0.4, 1), (0.6, 2), (0.9, 3), (1.0, 4)):
        assert filtered(logits, SamplingConfig(top_p=top_p)).isfinite().sum() == count


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[0.1, 0.2, 0.7]]).log().expand(20000, -1)
    uniform = torch.from_numpy(np.random.default_rng(0).random(20000))
    share = draw(logits, uniform).bincount(minlength=3) / 20000
    assert torch.allclose(share, torch.tensor([0.1, 0.2, 0.7]), atol=0.02)


def test_a_masked_code_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(1001, -1)
    codes = draw(logits, torch.linspace(0, 0.999999, 1001))
    assert set(codes.tolist()) == {1, 3}


def test_uniform_draws_repeat_by_seed() -> None:
    assert (uniform_draws([5, 6], 4)[1] == uniform_draws([6], 4)[0]).all()
