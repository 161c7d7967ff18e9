"""The figures of an evaluation, from trials and their scores: what metrics.json and the report hold."""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image
from pydantic import JsonValue

from clipgen_core.data.pixels import Rejected, decode, fit_square
from clipgen_core.data.sources import Source
from clipgen_core.errors import ClipgenError
from clipgen_core.generation.parts import Parts
from clipgen_core.judging.copies import Nearest
from clipgen_core.judging.judge import Judge, Scored
from clipgen_core.judging.metrics import bootstrap
from clipgen_core.judging.trials import CHAMPION, GENERATED, REAL, Trial
from clipgen_core.settings.evaluation import Config
from clipgen_core.training.checkpoint import Checkpoint
from clipgen_core.training.provenance import TrainingState

Scores = Mapping[str, Mapping[str, Scored]]  # by split, then by kind
OF_TRAINING = ("psnr", "codebook_usage", "codebook_perplexity", "loss", "validation_loss")


def scores_and_distances(
    config: Config, judge: Judge, trials: Sequence[Trial], scores: Scores
) -> dict[str, float]:
    """`{split}/{kind}/{figure}` of every kind of images.

    Args:
        config: Names a folder of reference images, if there is one.
        judge: Measures the distances between sets.
        trials: One a split.
        scores: Of the trials.

    Returns:
        Figures by name.
    """
    held_out = judge.reference(_reference(config, trials)) if config.reference else None
    metrics: dict[str, float] = {}
    for trial in trials:
        kinds = scores[trial.split]
        reference = held_out or judge.reference(kinds[REAL].images, kinds[REAL].embeddings)
        for kind, own in kinds.items():
            figures = own.metrics() | reference.distances(own.images, own.embeddings)
            metrics |= {f"{trial.split}/{kind}/{name}": value for name, value in figures.items()}
        metrics[f"{trial.split}/prompts"] = len(trial.prompts)
    return metrics


def _reference(config: Config, trials: Sequence[Trial]) -> list[Image.Image]:
    """The first images of the reference folder, as large as the real ones."""
    source, size = Source(config.reference or ""), trials[0].images[REAL][0].width
    items = (item for file in source.files() for item in source.items(file))
    images: list[Image.Image] = []
    for item in itertools.islice(items, config.reference_images):
        try:
            images.append(fit_square(decode(item.data).image, size))
        except Rejected as error:
            raise ClipgenError(f"{item.uri} is no usable reference image ({error}): take it out") from error
    if len(images) < 2:
        raise ClipgenError(f"the reference folder {source.url} holds {len(images)} images: give another")
    return images


def against_champion(scores: Iterable[Mapping[str, Scored]]) -> dict[str, float]:
    """The mean difference of the CLIP score to the champion's, for the same prompts and seeds, and its 95 %
    interval; empty if there is no champion."""
    pairs = [(kinds[GENERATED], kinds[CHAMPION]) for kinds in scores if CHAMPION in kinds]
    if not pairs:
        return {}
    difference = bootstrap(np.concatenate([ours.clip_score - theirs.clip_score for ours, theirs in pairs]))
    return {f"against_champion/{name}": value for name, value in difference._asdict().items()}


def memorised(config: Config, trials: Sequence[Trial]) -> dict[str, float]:
    """The share of generated images that are copies of training images.

    Args:
        config: Says from which share of equal codes on an image counts as a copy.
        trials: With the nearest training image of each generated one.

    Returns:
        `memory/copies`, the share, and `memory/same_codes`, the mean share of equal codes.

    Raises:
        ClipgenError: All training images were pruned.
    """
    shares = [near.same_codes for trial in trials for near in trial.nearest if near]
    if not shares:
        raise ClipgenError("no training image is left to compare with: materialise raw_images again")
    return {
        "memory/copies": float(np.mean([share >= config.copy_share for share in shares])),
        "memory/same_codes": float(np.mean(shares)),
    }


def training_states(parts: Parts) -> dict[str, TrainingState]:
    """How the trainings of a generator's models ended."""
    checkpoints = {"vqgan": parts.vqgan, "transformer": parts.transformer}
    return {stage: Checkpoint(url).state for stage, url in checkpoints.items()}


def training_metrics(states: Mapping[str, TrainingState]) -> dict[str, float]:
    """The last figures of each training."""
    metrics: dict[str, float] = {}
    for stage, state in states.items():
        last: dict[str, float] = {}
        for row in state.history:
            last |= row
        metrics |= {f"{stage}/{name}": last[name] for name in OF_TRAINING if name in last}
        metrics[f"{stage}/steps"] = state.step
        metrics[f"{stage}/images_per_second"] = state.images_per_second
    return metrics


def by_prompt(trials: Sequence[Trial], scores: Scores) -> list[dict[str, JsonValue]]:
    """One record a prompt, for statistics of one's own.

    Args:
        trials: One a split.
        scores: Of the trials.

    Returns:
        Records that JSON can hold.
    """
    return [
        {
            "prompt": text,
            "split": trial.split,
            "clip_score": {kind: float(one.clip_score[i]) for kind, one in scores[trial.split].items()},
            "better_prompts": {kind: int(one.rank[i]) for kind, one in scores[trial.split].items()},
            "nearest_training_picture": _nearest(near),
        }
        for trial in trials
        for i, (text, near) in enumerate(zip(trial.texts, trial.nearest, strict=True))
    ]


def _nearest(near: Nearest | None) -> JsonValue:
    return {"id": near.id, "cosine": near.cosine, "same_codes": near.same_codes} if near else None
