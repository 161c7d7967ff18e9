"""The checks that a candidate must pass before it is promoted, computed from the metrics of an evaluation."""

from collections.abc import Mapping
from typing import NamedTuple

from clipgen_core.settings.evaluation import Thresholds


class Verdict(NamedTuple):
    """The result of one check.

    Attributes:
        name: Name of the check.
        passed: Whether the candidate passes.
        figures: The metrics that were compared, by name.
        reason: One clause that says why the check fails; of no meaning if it passes.
    """

    name: str
    passed: bool
    figures: dict[str, float]
    reason: str


def check(metrics: Mapping[str, float], thresholds: Thresholds) -> list[Verdict]:
    """Check a candidate.

    Args:
        metrics: Metrics of an evaluation, by the names in its metrics.json.
        thresholds: What is required of them.

    Returns:
        One verdict for each check.
    """
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
            f"{prompts:.0f} prompts were scored, at least {thresholds.min_prompts} are needed",
        ),
        Verdict(
            "not_worse_than_champion",
            low >= -thresholds.tolerance,
            against,
            f"the CLIP score may be {-low:.3f} below the champion's, {thresholds.tolerance} is allowed",
        ),
        Verdict(
            "codebook_in_use",
            usage >= thresholds.min_codebook_usage,
            {"usage": usage},
            f"{usage:.0%} of the codebook is in use, at least {thresholds.min_codebook_usage:.0%} is needed",
        ),
        Verdict(
            "not_memorised",
            copies <= thresholds.max_copies,
            {"copies": copies},
            f"{copies:.0%} of the images are memorised copies, {thresholds.max_copies:.0%} is allowed",
        ),
    ]
