import pytest

from clipgen_core.judging.checks import check
from clipgen_core.settings.evaluation import Thresholds

METRICS = {
    "train/prompts": 40.0,
    "tokens/codebook_usage": 0.9,
    "memory/copies": 0.1,
    "above_shuffled/mean": 0.2,
    "above_shuffled/low": 0.15,
    "above_shuffled/high": 0.25,
}


@pytest.mark.parametrize(
    ("figures", "failed"),
    [
        ({}, []),
        ({"train/prompts": 29.0}, ["enough_prompts"]),
        ({"train/prompts": 20.0, "held-out/prompts": 10.0}, []),
        ({"tokens/codebook_usage": 0.4}, ["codebook_in_use"]),
        ({"vqgan/codebook_usage": 0.4}, []),  # of a few validation images
        ({"memory/copies": 0.6}, ["not_memorised"]),
        ({"above_shuffled/mean": 0.01, "above_shuffled/low": -0.01}, ["follows_prompts"]),
        ({"against_champion/mean": 0.0, "against_champion/low": -0.04}, ["not_worse_than_champion"]),
        ({"against_champion/mean": -0.01, "against_champion/low": -0.02}, []),
    ],
)
def test_what_a_candidate_must_reach(figures: dict[str, float], failed: list[str]) -> None:
    verdicts = check(METRICS | figures, Thresholds())
    assert [one.name for one in verdicts if not one.passed] == failed
    assert len(verdicts) == 5 and all(one.reason and one.measured for one in verdicts)


@pytest.mark.parametrize(
    ("missing", "name"),
    [
        ("train/prompts", "enough_prompts"),
        ("tokens/codebook_usage", "codebook_in_use"),
        ("memory/copies", "not_memorised"),
        ("above_shuffled/low", "follows_prompts"),
    ],
)
def test_a_missing_figure_is_not_measured_rather_than_zero(missing: str, name: str) -> None:
    figures = {key: value for key, value in METRICS.items() if key != missing}
    (one,) = (verdict for verdict in check(figures, Thresholds()) if not verdict.passed)
    assert one.name == name and not one.measured and one.said.startswith("not measured: ")
    assert not one.figures


def test_a_usage_that_only_the_training_measured_counts() -> None:
    figures = METRICS | {"vqgan/codebook_usage": 0.4}
    del figures["tokens/codebook_usage"]
    (one,) = (verdict for verdict in check(figures, Thresholds()) if not verdict.passed)
    assert one.said == "failed: 40% of the codebook is in use, at least 50% is needed"


def test_an_unfair_comparison_is_not_measured_whatever_the_figures() -> None:
    figures = METRICS | {"against_champion/mean": 1.0, "against_champion/low": 1.0}
    (one,) = (verdict for verdict in check(figures, Thresholds(), "unfair") if not verdict.passed)
    assert one.name == "not_worse_than_champion" and one.said == "not measured: unfair"
