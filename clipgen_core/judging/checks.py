"""The checks that a candidate must pass before it is promoted, computed from the metrics of an evaluation."""

from collections.abc import Mapping
from typing import NamedTuple

from clipgen_core.settings.evaluation import Thresholds

PASSED, FAILED, NOT_MEASURED = "passed", "failed", "not measured"


class Verdict(NamedTuple):
    """The result of one check.

    Attributes:
        name: Name of the check.
        passed: Whether the candidate passes. It does not where the check was not measured.
        figures: The metrics that were compared, by name.
        reason: One clause that says why the check fails or was not measured; of no meaning if it passes.
        measured: Whether the figures of this check are available.
    """

    name: str
    passed: bool
    figures: dict[str, float]
    reason: str
    measured: bool = True

    @property
    def said(self) -> str:
        """The verdict as a tag of the registered version."""
        if self.passed:
            return PASSED
        return f"{FAILED}: {self.reason}" if self.measured else f"{NOT_MEASURED}: {self.reason}"


def check(metrics: Mapping[str, float], thresholds: Thresholds, unfair: str | None = None) -> list[Verdict]:
    """Check a candidate.

    Args:
        metrics: Metrics of an evaluation, by the names in its metrics.json.
        thresholds: What is required of them.
        unfair: Why the scores of candidate and champion cannot be compared; None if they can, or if there is
            no champion.

    Returns:
        One verdict for each check. A check whose metric is missing is not measured.
    """
    return [
        _enough_prompts(metrics, thresholds),
        _follows_prompts(metrics, thresholds),
        _not_worse_than_champion(metrics, thresholds, unfair),
        _codebook_in_use(metrics, thresholds),
        _not_memorised(metrics, thresholds),
    ]


def _enough_prompts(metrics: Mapping[str, float], thresholds: Thresholds) -> Verdict:
    name, splits = "enough_prompts", [value for key, value in metrics.items() if key.endswith("/prompts")]
    if not splits:
        return Verdict(name, False, {}, "the number of prompts is not known: evaluate again", measured=False)
    prompts = sum(splits)
    return Verdict(
        name,
        prompts >= thresholds.min_prompts,
        {"prompts": prompts},
        f"{prompts:.0f} prompts were scored, at least {thresholds.min_prompts} are needed",
    )


def _follows_prompts(metrics: Mapping[str, float], thresholds: Thresholds) -> Verdict:
    """An absolute floor, which the first candidate needs, too."""
    name, least = "follows_prompts", thresholds.min_above_shuffled
    if "above_shuffled/low" not in metrics:
        reason = "no split has two prompts that were scored: add prompts, and evaluate again"
        return Verdict(name, False, {}, reason, measured=False)
    gain = {part: metrics[f"above_shuffled/{part}"] for part in ("mean", "low", "high")}
    reason = (
        f"the CLIP score of images with their own prompts is {gain['mean']:.3f} above that with others, and "
        f"may be only {gain['low']:.3f}; at least {least} is needed"
    )
    return Verdict(name, gain["low"] >= least, gain, reason)


def _not_worse_than_champion(
    metrics: Mapping[str, float], thresholds: Thresholds, unfair: str | None
) -> Verdict:
    name = "not_worse_than_champion"
    if unfair:
        return Verdict(name, False, {}, unfair, measured=False)
    against = {
        part: metrics[f"against_champion/{part}"]
        for part in ("mean", "low", "high")
        if f"against_champion/{part}" in metrics
    }
    if not against:
        return Verdict(name, True, {}, "there is no champion")
    low = against["low"]
    reason = f"the CLIP score may be {-low:.3f} below the champion's, {thresholds.tolerance} is allowed"
    return Verdict(name, low >= -thresholds.tolerance, against, reason)


def _codebook_in_use(metrics: Mapping[str, float], thresholds: Thresholds) -> Verdict:
    """Usage over all training images; over the validation images where the former is not known."""
    name, least = "codebook_in_use", thresholds.min_codebook_usage
    usage = metrics.get("tokens/codebook_usage", metrics.get("vqgan/codebook_usage"))
    if usage is None:
        reason = (
            "the usage of the codebook is not known, as the token shards are of an earlier version: train "
            "and evaluate again"
        )
        return Verdict(name, False, {}, reason, measured=False)
    reason = f"{usage:.0%} of the codebook is in use, at least {least:.0%} is needed"
    return Verdict(name, usage >= least, {"usage": usage}, reason)


def _not_memorised(metrics: Mapping[str, float], thresholds: Thresholds) -> Verdict:
    name, most = "not_memorised", thresholds.max_copies
    copies = metrics.get("memory/copies")
    if copies is None:
        reason = "no training image is left to compare with: read the images again, and evaluate"
        return Verdict(name, False, {}, reason, measured=False)
    reason = f"{copies:.0%} of the images are memorised copies, {most:.0%} is allowed"
    return Verdict(name, copies <= most, {"copies": copies}, reason)
