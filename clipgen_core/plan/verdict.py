"""Whether a training fits the memory of a device, and by which settings it does."""

from dataclasses import dataclass

from clipgen_core.models.clip import ClipEncoder
from clipgen_core.plan.memory import Need, need_of
from clipgen_core.recipes import Recipe
from clipgen_core.settings.training import TrainConfig

USABLE = 0.9  # share of a device's memory, for what is not counted
TRIED = 2  # micro-batches that are counted


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

    The settings do not change what is trained. Smaller micro-batches are tried before blocks are recomputed,
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
        smaller = _smaller(getattr(changed, stage).train, then, usable)
        while then.total > usable and smaller:
            overrides = overrides | {f"{stage}.train.micro_batch": smaller.pop(0)}
            then = need_of(stage, recipe.override(overrides), clip, gpu)
        if then.total <= usable:
            return Verdict(need, False, overrides, then)
    return Verdict(need, False, {}, need)


def _smaller(train: TrainConfig, need: Need, usable: float) -> list[int]:
    """The largest micro-batches that should be small enough; some, as this is a straight line."""
    images = (usable - need.fixed - need.batches) / need.per_image
    present = train.batch_size // train.passes()
    divisors = [n for n in range(present - 1, 0, -1) if train.batch_size % n == 0]
    return [n for n in divisors if n <= images][:TRIED]
