import pytest

from clipgen_core.judging.checks import check
from clipgen_core.settings.evaluation import Thresholds

METRICS = {"train/prompts": 40.0, "vqgan/codebook_usage": 0.9, "memory/copies": 0.1}


@pytest.mark.parametrize(
    ("figures", "failed"),
    [
        ({}, []),
        ({"train/prompts": 29.0}, ["enough_prompts"]),
        ({"train/prompts": 20.0, "held-out/prompts": 10.0}, []),
        ({"vqgan/codebook_usage": 0.4}, ["codebook_in_use"]),
        ({"memory/copies": 0.6}, ["not_memorised"]),
        ({"against_champion/mean": 0.0, "against_champion/low": -0.04}, ["not_worse_than_champion"]),
        ({"against_champion/mean": -0.01, "against_champion/low": -0.02}, []),
    ],
)
def test_what_a_candidate_must_reach(figures: dict[str, float], failed: list[str]) -> None:
    verdicts = check(METRICS | figures, Thresholds())
    assert [one.name for one in verdicts if not one.passed] == failed
    assert len(verdicts) == 4 and all(one.reason for one in verdicts)
