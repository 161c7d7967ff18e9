"""Which training a stage goes on with, and which weights a new one starts from.

A training is found again by what its steps compute: its settings without those marked MAY_CHANGE, and its
inputs. Its folder and its record stay those of its first run, so that nothing that was made from its
checkpoints has to be made again. Knows the records of checkpoints; knows no stage.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from clipgen_core import filesystem, logs
from clipgen_core.errors import ClipgenError
from clipgen_core.schema import TokenManifest
from clipgen_core.settings import clip, transformer, vqgan
from clipgen_core.settings.catalogue import identity
from clipgen_core.storage import Storage, located, portable, root_of
from clipgen_core.training import distributed
from clipgen_core.training.checkpoint import MARKER, Checkpoint, Checkpoints, newest_in
from clipgen_core.training.provenance import Provenance, StartedFrom

LATEST = "latest"
NAMED = 3  # differences that a message names


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A training as its stage describes it.

    stage: Its folder under `checkpoints`.
    label: What messages call its model.
    config: The settings of the stage.
    provenance: What it is made from, with addresses in full.
    out: The root.
    name_of: The folder's name for a training with a record, as it is stored.
    source: The checkpoint at an address that `start_from` gives; a ClipgenError if its weights do not fit.
    """

    stage: str
    label: str
    config: clip.Config | vqgan.Config | transformer.Config
    provenance: Provenance
    out: Storage
    name_of: Callable[[Provenance], str]
    source: Callable[[str], Checkpoint]


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training that has its place: the folder's name, its checkpoints, and the weights that it starts from,
    None from scratch and where it has checkpoints of its own."""

    name: str
    checkpoints: Checkpoints
    start: Checkpoint | None = None

    @property
    def started_from(self) -> str | None:
        """The address of the weights that it started from."""
        source = self.checkpoints.provenance.started_from
        return located(source.url, root_of(self.checkpoints.url)) if source else None

    @property
    def of_imported(self) -> bool:
        """Whether it started from imported weights, at once or by way of other trainings."""
        source = self.checkpoints.provenance.started_from
        return bool(source and source.imported)


@dataclass(frozen=True)
class Run:
    """A training under the root, by its newest checkpoint."""

    name: str
    newest: Checkpoint

    @cached_property
    def written(self) -> float:
        """When the newest checkpoint was, in seconds."""
        return filesystem.modified(f"{self.newest.url}/{MARKER}")

    @property
    def to_use(self) -> str:
        """The address of its checkpoint to use: the best where `patience` ends trainings, else the newest."""
        provenance, folder = self.newest.provenance, self.newest.url.rpartition("/")[0]
        train: Any = provenance.config.get("train") or {}  # imported weights have none
        used = Checkpoints(url=folder, provenance=provenance).to_use(train.get("patience", 0))
        return (used or self.newest).url


def place(spec: Spec) -> Training:
    """Find a training again, or give a new one its place.

    For a new training, a sentence is logged: what it starts from, or how it differs from the most similar
    training under the root.

    Args:
        spec: The training.

    Returns:
        Its place.

    Raises:
        ClipgenError: `start_from` names no checkpoint, or one that does not fit.
    """
    stored = portable(spec.provenance, spec.out.root)
    name = spec.name_of(stored)
    if newest := newest_in(spec.out.checkpoints(spec.stage, name)):
        return _found(spec, Run(name, newest))
    compared = [(run, differences(spec, run)) for run in runs(spec.out, spec.stage)]
    if same := [run for run, different in compared if different == []]:
        return _found(spec, max(same, key=lambda run: run.newest.state.step))
    if spec.config.start_from:
        return _started(spec, spec.config.start_from, [run for run, _ in compared])
    if distributed.rank() == 0 and (text := _comparison(spec, compared)):
        logs.line(text, stage=spec.stage)
    return Training(name=name, checkpoints=_checkpoints(spec, name, stored))


def runs(out: Storage, stage: str) -> list[Run]:
    """The trainings of a stage that have a whole checkpoint, imported weights among them.

    Args:
        out: The root.
        stage: A folder under `checkpoints`.

    Returns:
        In the order of their names.
    """
    folder = out.path("checkpoints", stage)
    found = ((name, newest_in(f"{folder}/{name}")) for name in filesystem.list_folder(folder))
    return [Run(name, newest) for name, newest in found if newest]


def latest(there: Sequence[Run], label: str, out: Storage) -> str:
    """The checkpoint that `start_from: latest` means.

    Args:
        there: The trainings of the stage under the root.
        label: What messages call its model.
        out: The root.

    Returns:
        The address of the checkpoint to use of the training that was written last.

    Raises:
        ClipgenError: There is no training.
    """
    if not there:
        raise ClipgenError(
            f"start_from is {LATEST}, but no {label} was trained under {out.root} yet: train one without "
            "start_from first, or give an address"
        )
    return max(there, key=lambda run: run.written).to_use


def differences(spec: Spec, run: Run) -> list[str] | None:
    """How a training under the root differs from another.

    Args:
        spec: The other.
        run: The training under the root.

    Returns:
        A phrase each; none if it is the same. None for what is no training with settings of this version.
    """
    try:
        record = located(run.newest.provenance, spec.out.root)
        earlier = identity(type(spec.config).model_validate(record.config))
    except (ClipgenError, ValidationError):
        return None
    settings = [
        f"{name} {_text(earlier.get(name))} -> {_text(value)}"
        for name, value in identity(spec.config).items()
        if earlier.get(name) != value
    ]
    return settings + _other_inputs(spec, record, run)


def _other_inputs(spec: Spec, record: Provenance, run: Run) -> list[str]:
    now, other = spec.provenance, list[str]()
    if _images(now)[0] != _images(record)[0]:
        what = "captions" if now.captions else "images"
        other.append(_other_images(_images(now)[1], _images(record)[1], what))
    if now.clip != record.clip:
        other.append(f"CLIP {record.clip} -> {now.clip}")
    if isinstance(now.tokens, TokenManifest):
        other += _other_codes(now.tokens, record.tokens) if now.tokens != record.tokens else []
    named_by_texts = spec.name_of(run.newest.provenance) == run.name  # 0.1 stored no texts
    if now.texts != record.texts and (record.texts or not named_by_texts):
        other.append("other texts")
    return list(filter(None, other))


def _images(record: Provenance) -> tuple[str | None, int | None]:
    """The digest of the images and their number, as far as they are known."""
    if isinstance(record.tokens, TokenManifest):
        return record.tokens.images_digest, record.tokens.rows // record.tokens.views
    return record.images_digest or record.captions, record.image_count


def _other_images(now: int | None, before: int | None, what: str) -> str:
    if now is None or before is None or now == before:
        return f"other {what}"
    return f"{now} images instead of {before}"


def _other_codes(now: TokenManifest, before: Any) -> list[str]:
    """How token shards differ; that they were made from later versions of the same rows does not count."""
    ignored = {"images_version", "embeddings_version"}
    one, two = now.model_dump(exclude=ignored), before.model_dump(exclude=ignored)
    named = {"vqgan_digest": "VQGAN", "clip_key": "CLIP"}
    other = [
        f"{label} {two.get(key)} -> {one[key]}" for key, label in named.items() if one[key] != two.get(key)
    ]
    if one != two and not other and now.images_digest == before.images_digest:
        return ["other token shards"]
    return other


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _comparison(spec: Spec, compared: list[tuple[Run, list[str] | None]]) -> str | None:
    """A sentence on the most similar training; None if there is none."""
    trainings = [(len(different), -run.written, run, different) for run, different in compared if different]
    if not trainings:
        return None
    *_, run, different = min(trainings, key=lambda one: one[:2])
    named = different[:NAMED] + ([f"{len(different) - NAMED} more"] if len(different) > NAMED else [])
    train: Any = run.newest.provenance.config["train"]
    newest = max((one for one, _ in compared), key=lambda one: one.written)
    sentence = (
        f"a new training of the {spec.label} begins, since {run.newest.url} (step {run.newest.state.step} of "
        f"{train['steps']}) has other settings or inputs: {', '.join(named)}"
    )
    address = LATEST if run is newest else run.to_use
    return (
        f"{sentence}; to go on from its weights instead, set start_from: {address}"
        if _fits(spec, run)
        else sentence
    )


def _fits(spec: Spec, run: Run) -> bool:
    try:
        return bool(spec.source(run.to_use))
    except ClipgenError:
        return False


def _found(spec: Spec, run: Run) -> Training:
    return Training(name=run.name, checkpoints=_checkpoints(spec, run.name, run.newest.provenance))


def _started(spec: Spec, address: str, there: list[Run]) -> Training:
    if address == LATEST:
        address = latest(there, spec.label, spec.out)
    start = spec.source(address)
    earlier = start.provenance
    imported = bool(earlier.imported or (earlier.started_from and earlier.started_from.imported))
    source = StartedFrom(url=address, digest=earlier.digest, imported=imported)
    provenance = portable(spec.provenance.model_copy(update={"started_from": source}), spec.out.root)
    name = spec.name_of(provenance)
    if distributed.rank() == 0:
        logs.line(f"the training of the {spec.label} starts from the weights of {address}", stage=spec.stage)
    return Training(name=name, checkpoints=_checkpoints(spec, name, provenance), start=start)


def _checkpoints(spec: Spec, name: str, provenance: Provenance) -> Checkpoints:
    keep = spec.config.train.keep_checkpoints
    return Checkpoints(url=spec.out.checkpoints(spec.stage, name), provenance=provenance, keep=keep)
