"""What stands between a candidate and promotion, from an evaluation's figures."""

from collections.abc import Mapping
from typing import NamedTuple

from clipgen_core.settings.evaluation import Thresholds


class Verdict(NamedTuple):
    """One check of a candidate: its figures, and one sentence where it fails."""

    name: str
    passed: bool
    figures: dict[str, float]
    reason: str


def check(metrics: Mapping[str, float], thresholds: Thresholds) -> list[Verdict]:
    """The checks between a candidate and promotion, from an evaluation's metrics."""
    prompts = sum(value for name, value in metrics.items() if name.endswith("/prompts"))
    usage, copies = metrics.get("vqgan/codebook_usage", 0.0), metrics["memory/copies"]
    against = {
        name: metrics[f"against_champion/{name}"]
        for name in ("mean", "low", "high")
        if f"against_champion/{name}" in metrics
    }
    low = against.get("low", 0.0)
    return [
        Verdict(
            "enough_prompts",
            prompts >= thresholds.min_prompts,
            {"prompts": prompts},
            f"{prompts:.0f} prompts, {thresholds.min_prompts} needed",
        ),
        Verdict(
            "not_worse_than_champion",
            low >= -thresholds.tolerance,
            against,
            f"the CLIP score may be worse than the champion's by {-low:.3f}, {thresholds.tolerance} allowed",
        ),
        Verdict(
            "codebook_in_use",
            usage >= thresholds.min_codebook_usage,
            {"usage": usage},
            f"{usage:.2f} of the codebook in use, {thresholds.min_codebook_usage} needed",
        ),
        Verdict(
            "not_memorised",
            copies <= thresholds.max_copies,
            {"copies": copies},
            f"{copies:.2f} of the pictures copy a training picture, {thresholds.max_copies} allowed",
        ),
    ]
