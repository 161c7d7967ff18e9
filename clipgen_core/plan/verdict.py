"""Whether a training fits the memory of a device, and by which settings it does."""

from dataclasses import dataclass

from clipgen_core.models.clip import ClipEncoder
from clipgen_core.plan.memory import Need, need_of
from clipgen_core.recipes import Recipe
from clipgen_core.settings.training import TrainConfig

USABLE = 0.9  # share of a device's memory, for what is not counted
TRIED = 2  # numbers of passes that are counted


@dataclass(frozen=True)
class Verdict:
    """Whether a training fits.

    Attributes:
        need: Its memory by the recipe.
        fits: Whether that is there.
        overrides: Settings by which it fits, if it does not; none if nothing helps.
        then: Its memory with them.
    """

    need: Need
    fits: bool
    overrides: dict[str, int | bool]
    then: Need


def judge(stage: str, recipe: Recipe, clip: ClipEncoder, *, memory: float, gpu: bool) -> Verdict:
    """Count the memory of a training, and look for settings with less if it does not fit.

    The settings do not change what is trained. More backward passes are tried before blocks are recomputed,
    which is slower.

    Args:
        stage: `vqgan` or `transformer`.
        recipe: The settings of all stages.
        clip: The CLIP.
        memory: Bytes of the device.
        gpu: Whether it is a GPU.

    Returns:
        The verdict.
    """
    need, usable = need_of(stage, recipe, clip, gpu), USABLE * memory
    if need.total <= usable:
        return Verdict(need, True, {}, need)
    starts: list[dict[str, int | bool]] = [{}]
    if not getattr(recipe, stage).recompute:
        starts.append({f"{stage}.recompute": True})
    for overrides in starts:
        changed = recipe.override(overrides)
        then = need_of(stage, changed, clip, gpu) if overrides else need
        passes = _passes(getattr(changed, stage).train, then, usable)
        while then.total > usable and passes:
            overrides = overrides | {f"{stage}.train.accumulate": passes.pop(0)}
            then = need_of(stage, recipe.override(overrides), clip, gpu)
        if then.total <= usable:
            return Verdict(need, False, overrides, then)
    return Verdict(need, False, {}, need)


def _passes(train: TrainConfig, need: Need, usable: float) -> list[int]:
    """The smallest numbers of backward passes that should be enough; some, as this is a straight line."""
    images = (usable - need.fixed - need.batches) / need.per_image
    divisors = [n for n in range(train.accumulate + 1, train.batch_size + 1) if train.batch_size % n == 0]
    return [n for n in divisors if train.batch_size / n <= images][:TRIED]
