"""Proposes a whole run for a folder of images: CLIP, recipe, and steps that fit the machine and the time.

Knows what a person without run configs would choose; knows nothing of Dagster, which runs the jobs.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipgen_core.data.prompts import NAMES, read_prompts, require_scorable
from clipgen_core.data.sources import Source
from clipgen_core.errors import ClipgenError, first_line
from clipgen_core.proposal.run import EVALUATION, ON_TOP, Proposal
from clipgen_core.recipes import named
from clipgen_core.storage import SAFE_PART

AUTO = "auto"
LARGE, MEDIUM = 40e9, 16e9  # bytes of GPU memory for the recipes l and b
SMALL = "photos"  # the recipe for less memory, and for CPUs
FEWEST_STEPS = 20
LEAST_MINUTES = 5  # that are worth a try on a fast machine
LONGER = 4.0  # times the recipe's steps at the most; more make copies of the training images
TRAININGS = {"clip_checkpoint": "clip", "vqgan_checkpoint": "vqgan", "transformer_checkpoint": "transformer"}


def propose(
    source: str,
    *,
    name: str | None = None,
    recipe: str = AUTO,
    clip: str | None = None,
    captions: str | None = None,
    prompts: str | None = None,
    minutes: float | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Proposal:
    """Look at a folder and at the machine, and propose a run; writes nothing.

    Args:
        source: Folder of the images, a local path or an fsspec URL.
        name: Of the run and of the model; by default that of the folder.
        recipe: Name of a recipe; AUTO for one that fits the machine.
        clip: The CLIP; by default a public one, or else one that is trained on the names of the images.
        captions: Trains a small CLIP on these captions.
        prompts: Prompts of the evaluation; by default the captions or names that the CLIP is trained on.
        minutes: How long the run may take; scales the steps of the trainings.
        overrides: Settings by dotted name, the stage first; they win.

    Returns:
        The proposal.

    Raises:
        ClipgenError: The folder cannot be read or holds no image, a value is not allowed, no CLIP is
            available, or the minutes are too few.
    """
    if minutes and minutes <= 60 * EVALUATION:
        raise _too_few(minutes, LEAST_MINUTES)
    if recipe != AUTO:
        named(recipe)
    source = _full(source)
    name = _name(source, name)
    _require_files(source)

    from clipgen_core.plan import plan  # with torch, for which a wrong folder need not wait
    from clipgen_core.proposal.clips import choose

    fitting = _fitting() if recipe == AUTO else recipe
    given = {"evaluation.shown": []} | dict(overrides or {})
    named(fitting).override(given)
    choice = choose(source, clip, _full(captions) if captions else None)
    if prompts:
        prompts = _full(prompts)
        require_scorable(prompts, read_prompts(prompts))
    elif choice.captions:
        prompts, least = choice.captions, named(fitting).evaluation.thresholds.min_prompts
        given = {"evaluation.thresholds.min_prompts": min(choice.different, least)} | given
    estimate = plan(source, named(fitting).override(given), choice.reference)
    for verdict in estimate.verdicts.values():
        given = verdict.overrides | given
    proposal = Proposal(name, source, fitting, given, choice, prompts, estimate)
    return _within(proposal, minutes) if minutes else proposal


def _too_few(minutes: float, least: float) -> ClipgenError:
    return ClipgenError(
        f"{minutes:g} minute{'s are' if minutes != 1 else ' is'} too few for a run on this machine, of "
        f"{FEWEST_STEPS} steps of each training and an evaluation: give at least {math.ceil(least)}"
    )


def _require_files(source: str) -> None:
    """Refuse a folder that cannot be used before anything is said of CLIPs."""
    try:
        empty = next(Source(source).files(), None) is None
    except ClipgenError:
        raise
    except Exception as error:  # each store has errors of its own
        raise ClipgenError(
            f"the source {source} cannot be read ({first_line(error)}): check the path, the network and the "
            "credentials"
        ) from error
    if empty:
        raise ClipgenError(f"the source folder {source} is empty: name the folder that holds the images")


def _fitting() -> str:
    """The recipe for this machine."""
    import torch

    if not torch.cuda.is_available():
        return SMALL
    memory = torch.cuda.get_device_properties().total_memory
    return "l" if memory >= LARGE else "b" if memory >= MEDIUM else SMALL


def _within(proposal: Proposal, minutes: float) -> Proposal:
    """The proposal with as many steps as the time allows, in the recipe's proportions."""
    lines, settings = proposal.plan.lines, proposal.settings
    trained = sum(line.hours for line in lines if line.stage in TRAININGS)
    rest = sum(line.hours for line in lines) - trained
    factor = ((minutes / 60 - EVALUATION) / ON_TOP - rest) / trained
    stages = [TRAININGS[line.stage] for line in lines if line.stage in TRAININGS]
    steps = {f"{stage}.train.steps": getattr(settings, stage).train.steps for stage in stages}
    least = FEWEST_STEPS / min(steps.values())
    if factor < least:
        raise _too_few(minutes, 60 * (ON_TOP * (rest + least * trained) + EVALUATION))
    factor = min(factor, LONGER)
    scaled = {name: round(factor * planned) for name, planned in steps.items()}
    hours = [line.hours * (factor if line.stage in TRAININGS else 1) for line in lines]
    faster = tuple(dataclasses.replace(line, hours=own) for line, own in zip(lines, hours, strict=True))
    return dataclasses.replace(
        proposal,
        overrides=scaled | dict(proposal.overrides),
        plan=dataclasses.replace(proposal.plan, lines=faster),
    )


def _name(source: str, given: str | None) -> str:
    """The name of the run: the given one, or that of the folder without what names may not hold."""
    own = re.sub(r"[^\w.-]+", "-", source.rstrip("/").rpartition("/")[2]).strip("-._").lower()
    name = own if given is None else given
    if not SAFE_PART.fullmatch(name) or name in (".", ".."):
        said = (
            f"{source} gives no name for the run" if given is None else f"--name {given!r} cannot name a run"
        )
        raise ClipgenError(f"{said} a run: give --name in letters, digits and any of . _ - + = @ ,")
    return name


def _full(path: str) -> str:
    return path if "://" in path or path.startswith(NAMES) else str(Path(path).expanduser().resolve())
