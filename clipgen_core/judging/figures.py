"""The figures of an evaluation, from trials and their scores: what metrics.json and the report hold."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from pydantic import JsonValue

from clipgen_core.generation.parts import Parts
from clipgen_core.judging.copies import Nearest
from clipgen_core.judging.judge import Judge, Scored
from clipgen_core.judging.metrics import bootstrap
from clipgen_core.judging.reference import FEWEST, PER_DIMENSION, Reference, choose_files, choose_stored
from clipgen_core.judging.trials import CHAMPION, GENERATED, REAL, Trial
from clipgen_core.schema import TokenManifest
from clipgen_core.settings.evaluation import Config
from clipgen_core.training.checkpoint import Checkpoint
from clipgen_core.training.provenance import GOAL, TrainingState

Scores = Mapping[str, Mapping[str, Scored]]  # by split, then by kind
REFERENCE = "against_reference"
OF_TRAINING = ("psnr", "codebook_usage", "codebook_perplexity", "codes_replaced", "loss", "validation_loss")


def scores_of_splits(trials: Sequence[Trial], scores: Scores) -> dict[str, float]:
    """The scores of every kind of images.

    Args:
        trials: One a split.
        scores: Of the trials.

    Returns:
        `{split}/{kind}/{figure}` by name, and `{split}/prompts`.
    """
    metrics: dict[str, float] = {}
    for trial in trials:
        for kind, own in scores[trial.split].items():
            metrics |= {f"{trial.split}/{kind}/{name}": value for name, value in own.metrics().items()}
        metrics[f"{trial.split}/prompts"] = len(trial.prompts)
    return metrics


def reference_set(
    config: Config, judge: Judge, trials: Sequence[Trial], images: str, where: str | None = None
) -> Reference | None:
    """The real images with which sets of images are compared.

    Args:
        config: Names a folder of reference images, if there is one, and says how many are used.
        judge: Represents them.
        trials: One a split; their own real images are left out.
        images: The images table.
        where: Which of them the generator was trained on; all if None.

    Returns:
        The reference set; None if there are too few prompts to compare sets of images, or if the images table
        holds too few images besides the prompts' own.

    Raises:
        ClipgenError: The folder holds too few images, or one that cannot be used.
    """
    if _count(trials) < FEWEST:
        return None
    size = trials[0].images[REAL][0].width
    most = config.reference_images or PER_DIMENSION * judge.name_embeddings.shape[1]
    if config.reference:
        return Reference(judge, choose_files(config.reference, size, most))
    own = {id for trial in trials for id in trial.real_ids}
    chosen = choose_stored(images, size, most, own, where)
    return Reference(judge, chosen) if chosen.most >= FEWEST else None


def against_reference(
    reference: Reference | None, trials: Sequence[Trial], scores: Scores
) -> dict[str, float]:
    """The distances of every kind of images, of all splits together, to the reference set.

    Args:
        reference: The reference set, if there is one.
        trials: One a split.
        scores: Of the trials.

    Returns:
        `against_reference/{kind}/{figure}`; of the kind `floor`, the distances of as many other real images.
        Nothing if there are too few images.
    """
    if reference is None:
        return {}
    count = _count(trials)
    metrics: dict[str, float] = {"images": count, "reference_images": reference.count}
    for kind in trials[0].images:
        own = [scores[trial.split][kind] for trial in trials]
        shown = [image for one in own for image in one.images]
        figures = reference.distances(shown, np.concatenate([one.embeddings for one in own]))
        metrics |= {f"{kind}/{name}": value for name, value in figures.items()}
    metrics |= {f"floor/{name}": value for name, value in reference.floor(count).items()}
    return {f"{REFERENCE}/{name}": value for name, value in metrics.items()}


def reference_notes(reference: Reference | None, trials: Sequence[Trial]) -> list[str]:
    """What the report says of the reference set.

    Args:
        reference: The reference set, if there is one.
        trials: One a split.

    Returns:
        Sentences.
    """
    if reference is None:
        return ["Too few images: sets of fewer than three are not compared."]
    return reference.notes(_count(trials))


def _count(trials: Sequence[Trial]) -> int:
    """Images of each kind, over all splits."""
    return sum(len(trial.prompts) for trial in trials)


def above_shuffled(scores: Iterable[Mapping[str, Scored]]) -> dict[str, float]:
    """By how much the CLIP score of the generated images is above their mean score with the other prompts of
    their split, and its 95 % interval; empty if no split has two prompts."""
    gained = [kinds[GENERATED].above_others for kinds in scores if len(kinds[GENERATED].texts) > 1]
    if not gained:
        return {}
    gain = bootstrap(np.concatenate(gained))
    return {f"above_shuffled/{name}": value for name, value in gain._asdict().items()}


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
        `memory/copies`, the share, and `memory/same_codes`, the mean share of equal codes; nothing if there
        is no training image to compare with.
    """
    shares = [near.same_codes for trial in trials for near in trial.nearest if near]
    if not shares:
        return {}
    return {
        "memory/copies": float(np.mean([share >= config.copy_share for share in shares])),
        "memory/same_codes": float(np.mean(shares)),
    }


def training_states(parts: Parts) -> dict[str, TrainingState]:
    """How the trainings of a generator's models ended."""
    return {stage: checkpoint.state for stage, checkpoint in _trained(parts).items()}


def starts(parts: Parts, states: Mapping[str, TrainingState]) -> list[str]:
    """What each training was started from, where it did not begin with random weights.

    Args:
        parts: Of the generator.
        states: How the trainings ended.

    Returns:
        A sentence a training, with its first and its lowest validation loss.
    """
    sources = {stage: checkpoint.started_from for stage, checkpoint in _trained(parts).items()}
    return [started(stage, source.url, states[stage]) for stage, source in sources.items() if source]


def _trained(parts: Parts) -> dict[str, Checkpoint]:
    """The checkpoints of a generator's trained models, by stage."""
    return {"vqgan": Checkpoint(parts.vqgan), "transformer": Checkpoint(parts.transformer)}


def started(stage: str, source: str, state: TrainingState) -> str:
    """Say what a training was started from.

    Args:
        stage: Whose training it is.
        source: URL of the weights that it was started from.
        state: How it ended.

    Returns:
        A sentence.
    """
    sentence = f"The {stage} was started from {source}"
    losses = [row[GOAL] for row in state.validations]
    return f"{sentence}: validation loss {losses[0]:.3f} → {min(losses):.3f}." if losses else f"{sentence}."


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


def codebook_metrics(parts: Parts) -> dict[str, float]:
    """Usage and perplexity of the codebook over all training images, as measured for the token shards.

    Args:
        parts: Of the generator.

    Returns:
        `tokens/{figure}` by name; nothing if the generator was not trained on token shards.
    """
    codes = Checkpoint(parts.transformer).codes
    if not isinstance(codes, TokenManifest):
        return {}
    return {
        "tokens/codebook_usage": codes.codebook_usage,
        "tokens/codebook_perplexity": codes.codebook_perplexity,
    }


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
