from collections import deque

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipgen_core.generation import sampling
from clipgen_core.generation.batch import Mode
from clipgen_core.generation.sampling import Busy, Job, Sampler, sample_codes
from clipgen_core.models.layout import NONE
from clipgen_core.settings.sampling import SamplingConfig
from tests.core.generation.test_sampling import CODES, DIM, POSITIONS, of_order

MODELS = {
    "raster": of_order("raster"),
    "annealed": of_order("annealed"),
    "any": of_order("any"),
    "neighbours": of_order("raster", 2),
}

ASKED = st.lists(
    st.fixed_dictionaries(
        {
            "rows": st.integers(1, 5),
            "after": st.integers(0, 6),
            "guidance_scale": st.sampled_from([1.0, 1.5, 3.0]),
            "temperature": st.sampled_from([0.0, 0.7, 1.3]),
            "top_k": st.sampled_from([0, 3, 99]),
            "top_p": st.sampled_from([0.5, 1.0]),
            "steps": st.sampled_from([0, 1, 4, 9]),
            "known": st.sets(st.integers(0, POSITIONS - 1), max_size=POSITIONS - 1),
            "leaves": st.booleans(),
        }
    ),
    min_size=1,
    max_size=5,
)


def job_of(sampler: Sampler, number: int, asked: dict[str, object]) -> tuple[Job, torch.Tensor]:
    """A job, and what its rows get alone."""
    model, count = sampler.model, int(asked["rows"])  # type: ignore[call-overload]
    names = ("guidance_scale", "temperature", "top_k", "top_p", *(["steps"] * (model.config.order == "any")))
    config = SamplingConfig(**{name: asked[name] for name in names})  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(number)
    rows = torch.nn.functional.normalize(torch.randn(count, model.prefix, DIM, generator=generator), dim=-1)
    known = None
    if model.config.order == "any" and asked["known"]:
        known = torch.full((count, POSITIONS), NONE)
        known[:, sorted(asked["known"])] = torch.randint(
            0, CODES, (len(asked["known"]),), generator=generator
        )  # type: ignore[call-overload, arg-type]
    seeds = range(10 * number, 10 * number + count)
    alone = sample_codes(model, rows, seeds, config, known=known)
    return sampler.job(rows, seeds, config, known=known, caller=str(number)), alone


@pytest.mark.parametrize("mode", ["eager", "fixed"])
@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=ASKED)
def test_rows_that_join_and_leave_at_any_step_get_what_they_would_get_alone(
    name: str, mode: Mode, asked: list[dict[str, object]]
) -> None:
    sampler = Sampler(MODELS[name], mode, share=0.5)
    jobs = [job_of(sampler, number, one) for number, one in enumerate(asked)]
    waiting = deque(zip(jobs, asked, strict=True))
    while waiting:
        (job, _), one = waiting.popleft()
        sampler.add(job)
        for _ in range(int(one["after"])):  # type: ignore[call-overload]
            sampler.advance()
        if one["leaves"]:
            sampler.remove(job)
    while sampler.jobs:
        sampler.advance()
    for (job, alone), one in zip(jobs, asked, strict=True):
        if not one["leaves"]:
            assert job.done and torch.equal(job.codes, alone)
    assert not any(batch.rows for batch in sampler._batches.values())


def many(sampler: Sampler, rows: int, caller: str) -> Job:
    embeddings = torch.randn(rows, 1, DIM)
    return sampler.job(embeddings, range(rows), SamplingConfig(guidance_scale=1.0), caller=caller)


def running(sampler: Sampler) -> list[str]:
    return [row.owner.caller for batch in sampler._batches.values() for row in batch.rows]


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> Sampler:
    """A sampler with room for eight rows."""
    monkeypatch.setattr(sampling, "MOST_ROWS", {"cpu": 8})
    return Sampler(MODELS["raster"], share=0.5)


def test_a_greedy_caller_leaves_room_for_others(eight: Sampler) -> None:
    greedy, modest = many(eight, 100, "greedy"), many(eight, 2, "modest")
    eight.add(greedy)
    eight.advance()
    assert running(eight) == ["greedy"] * 4
    eight.add(many(eight, 4, "greedy"))
    eight.add(modest)
    for step in range(POSITIONS):
        eight.advance()
        assert running(eight).count("modest") == 2 * (step < POSITIONS - 1)
    assert modest.done and not greedy.done


def test_who_has_the_fewest_rows_is_next(eight: Sampler) -> None:
    for caller, rows in (("a", 4), ("b", 3), ("a", 4), ("b", 4), ("c", 1)):
        eight.add(many(eight, rows, caller))
    eight.advance()
    assert sorted(running(eight)) == ["a"] * 4 + ["b"] * 3 + ["c"]


def test_rows_of_a_job_that_is_removed_make_room_at_once(eight: Sampler) -> None:
    first, second, third = (many(eight, 4, caller) for caller in "abc")
    for job in (first, second, third):
        eight.add(job)
    eight.advance()
    assert running(eight) == ["a"] * 4 + ["b"] * 4
    eight.remove(first)
    eight.advance()
    assert sorted(running(eight)) == ["b"] * 4 + ["c"] * 4
    eight.remove(second)
    eight.remove(third)
    assert not running(eight) and not eight.jobs


def test_too_many_that_wait_are_refused(eight: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "MOST_WAITING", 2)
    for caller in "ab":
        eight.add(many(eight, 1, caller))
    with pytest.raises(Busy, match="2 requests are being worked on: try again later"):
        eight.add(many(eight, 1, "c"))
