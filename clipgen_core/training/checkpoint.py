"""Checkpoints: folders `step-N` that appear whole or not at all.

model.safetensors   the weights to use (the average, where one is kept)
training.pt         what only resuming needs: raw weights, optimizers (read with weights_only)
config.json         what the checkpoint was made from: Provenance
validation/*.png    images of the validation at this step, where there was one
state.json          how far the training is: TrainingState; written last, so it marks a whole checkpoint
"""

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import torch
from PIL import Image
from pydantic import BaseModel, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipgen_core import filesystem
from clipgen_core.downloads import local_copy
from clipgen_core.errors import ClipgenError, first_line
from clipgen_core.schema import Frozen, TokenManifest
from clipgen_core.storage import located, root_of
from clipgen_core.training.provenance import ImportedCodes, Provenance, StartedFrom, TrainingState

MARKER, PROVENANCE, WEIGHTS, RESUME = "state.json", "config.json", "model.safetensors", "training.pt"
VALIDATION = "validation"
MODELS = (
    "a model file, a generator folder, a transformer checkpoint (step-N) or a registered model "
    "(models:/NAME@ALIAS)"
)
Record = TypeVar("Record", bound=BaseModel)
Settings = TypeVar("Settings", bound=Frozen)


class Resume(TypedDict):
    """What only resuming needs: state dicts by name, as torch has them."""

    model: dict[str, Tensor]
    extras: dict[str, dict[str, Tensor]]
    optimizers: dict[str, list[dict[str, Any]]]


NO_RESUME = Resume(model={}, extras={}, optimizers={})


@dataclass(frozen=True)
class Checkpoint:
    """One whole checkpoint, at a local path or an fsspec URL."""

    url: str

    @cached_property
    def folder(self) -> Path:
        """A local folder with its files."""
        return local_copy(self.url)

    @cached_property
    def provenance(self) -> Provenance:
        """The record as it is stored, with addresses relative to the root."""
        return self._record(PROVENANCE, Provenance)

    @cached_property
    def state(self) -> TrainingState:
        return self._record(MARKER, TrainingState)

    def rewrite(self, provenance: Provenance) -> None:
        """Give it another record, in place."""
        filesystem.write_bytes(f"{self.url}/{PROVENANCE}", _json(provenance.record))

    @property
    def codes(self) -> TokenManifest | ImportedCodes:
        """The codes that a transformer was trained on.

        Raises:
            ClipgenError: This is not a transformer's checkpoint.
        """
        if self.provenance.tokens is None:
            raise ClipgenError(f"{self.url} is no transformer checkpoint: give {MODELS}")
        return located(self.provenance.tokens, root_of(self.url))

    @property
    def started_from(self) -> StartedFrom | None:
        """The weights that its training started from; None from random ones."""
        return located(self.provenance.started_from, root_of(self.url))

    def settings(self, part: str, kind: type[Settings]) -> Settings:
        """One part of the stage's configuration.

        Args:
            part: Its name, such as `model`.
            kind: The settings class to read it as.

        Returns:
            The settings, checked.

        Raises:
            ClipgenError: This version does not know a setting in it.
        """
        try:
            return kind.model_validate(self.provenance.config.get(part))
        except ValidationError as error:
            problem = error.errors()[0]
            name = ".".join(map(str, [part, *problem["loc"]]))
            raise ClipgenError(
                f"{self.url}/{PROVENANCE} has a setting that this version does not know "
                f"({name}: {problem['msg']}): train again, or use the version that wrote it"
            ) from error

    def weights(self) -> dict[str, Tensor]:
        """The weights to use, on the CPU."""
        path = self.folder / WEIGHTS
        try:
            return load_file(path)
        except Exception as error:
            raise ClipgenError(
                f"{path} cannot be read ({first_line(error)}): restore it or train again"
            ) from error

    def resume(self) -> Resume:
        """What only resuming needs, on the CPU."""
        path = self.folder / RESUME
        try:
            saved: Resume = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ClipgenError(
                f"{path} cannot be read ({first_line(error)}), so the training cannot go on from there: "
                f"restore it, remove {self.url} to go on from the checkpoint before, or set start_from: "
                f"{self.url} for a new training from its weights"
            ) from error
        return saved

    def images(self) -> dict[str, Image.Image]:
        """The images of the validation at this step, by name; none in checkpoints of version 0.1."""
        files = sorted((self.folder / VALIDATION).glob("*.png"))
        return {file.stem: Image.open(io.BytesIO(file.read_bytes())) for file in files}

    def _record(self, name: str, kind: type[Record]) -> Record:
        url = f"{self.url}/{name}"
        if not filesystem.exists(url):
            raise ClipgenError(f"{self.url} is no checkpoint: it has no {name}; give a folder step-N")
        try:
            return kind.model_validate_json(filesystem.read_bytes(url))
        except ValidationError as error:
            raise ClipgenError(
                f"{self.url}/{name} is damaged ({error.errors()[0]['msg']}): restore it or train again"
            ) from error


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a checkpoint consists of when it is written."""

    weights: Mapping[str, Tensor]
    state: TrainingState
    resume: Resume = field(default_factory=lambda: NO_RESUME)
    images: Mapping[str, Image.Image] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """The checkpoints of one training.

    Args:
        url: `{root}/checkpoints/{stage}/{run}`.
        provenance: What all of them are made from, as it is stored.
        keep: How many of the newest stay, beside the best.
    """

    url: str
    provenance: Provenance
    keep: int = 2

    def at(self, step: int) -> str:
        """The URL of the checkpoint of a step, whether it is there or not."""
        return f"{self.url}/step-{step:08d}"

    def save(self, saved: Saved) -> str:
        """Publish a checkpoint and drop the oldest ones, but never the best.

        Returns:
            Its URL.

        Raises:
            ClipgenError: The disk is full.
        """
        target = self.at(saved.state.step)
        full = (
            f"the disk of {self.url} is full, so the checkpoint of step {saved.state.step} was not saved: "
            "the checkpoints that are there are whole, so make room and run again"
        )
        with filesystem.room_needed(full), filesystem.draft_folder(target) as scratch:
            draft = Path(scratch) / "checkpoint"
            _write(draft, saved, self.provenance)
            filesystem.publish_folder(draft, target, MARKER)
        best = saved.state.best
        for old in self.finished()[: -self.keep]:
            if best is None or old != f"step-{best:08d}":
                filesystem.remove_folder(f"{self.url}/{old}", MARKER)
        return target

    def finished(self) -> list[str]:
        """The names of the whole checkpoints, oldest first; folders without their marker are ignored."""
        return list(_whole(self.url))[::-1]

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint."""
        return newest_in(self.url)

    def to_use(self, patience: int) -> Checkpoint | None:
        """The checkpoint to use: the best where `patience` ends trainings, else the newest."""
        newest = self.latest()
        if newest is None or not patience or newest.state.best is None:
            return newest
        return Checkpoint(self.at(newest.state.best))


def newest_in(url: str) -> Checkpoint | None:
    """The newest whole checkpoint of a training's folder."""
    name = next(_whole(url), None)
    return Checkpoint(f"{url}/{name}") if name else None


def _whole(url: str) -> Iterator[str]:
    """The names of the whole checkpoints, newest first."""
    for name in reversed(filesystem.list_folder(url)):
        if name.startswith("step-") and filesystem.exists(f"{url}/{name}/{MARKER}"):
            yield name


def _write(draft: Path, saved: Saved, provenance: Provenance) -> None:
    (draft / VALIDATION).mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in saved.weights.items()}, draft / WEIGHTS)
    with (draft / RESUME).open("wb") as file:  # by its path, torch would not tell why it cannot write
        torch.save(saved.resume, file)
    for name, image in saved.images.items():
        image.save(draft / VALIDATION / f"{name}.png")
    (draft / PROVENANCE).write_bytes(_json(provenance.record))
    (draft / MARKER).write_bytes(_json(saved.state.model_dump(by_alias=True)))


def _json(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, indent=2).encode()
