"""Checkpoints: folders `step-N` that appear whole or not at all.

model.safetensors   the weights to use (the average, where one is kept)
training.pt         what only resuming needs: raw weights, optimizers (read with weights_only)
config.json         the model's configuration and everything it was made from
state.json          step and metrics so far; written last, so its presence marks a whole checkpoint
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipgen_core import storage
from clipgen_core.errors import ClipgenError, first_line

MARKER = "state.json"


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """The checkpoints of one training run.

    url: `{root}/checkpoints/{stage}/{run}`; keep: how many of the newest stay, beside the best.
    """

    url: str
    config: dict[str, Any]
    keep: int = 2

    def at(self, step: int) -> str:
        return f"{self.url}/step-{step:08d}"

    def save(
        self,
        step: int,
        weights: dict[str, Tensor],
        training: dict[str, Any],
        state: dict[str, Any],
        best: int | None = None,
    ) -> str:
        """Publish `step-N` and drop the oldest, but never that of step `best`; returns its URL."""
        target = self.at(step)
        with storage.draft_folder(target) as scratch:
            draft = Path(scratch) / "checkpoint"
            draft.mkdir()
            save_file({k: v.contiguous() for k, v in weights.items()}, draft / "model.safetensors")
            torch.save(training, draft / "training.pt")
            (draft / "config.json").write_text(json.dumps(self.config, indent=2))
            (draft / MARKER).write_text(json.dumps({"step": step, **state}, indent=2))
            storage.publish_folder(draft, target, MARKER)
        for old in self.finished()[: -self.keep]:
            if best is None or old != f"step-{best:08d}":
                storage.remove_folder(f"{self.url}/{old}")
        return target

    def finished(self) -> list[str]:
        """The whole checkpoints, oldest first; folders without their marker are ignored."""
        names = [n for n in storage.list_folder(self.url) if n.startswith("step-")]
        return [n for n in names if storage.exists(f"{self.url}/{n}/{MARKER}")]

    def latest(self) -> str | None:
        finished = self.finished()
        return f"{self.url}/{finished[-1]}" if finished else None


def read_config(url: str) -> dict[str, Any]:
    return dict(_read_json(url, "config.json"))


def read_state(url: str) -> dict[str, Any]:
    return dict(_read_json(url, MARKER))


def read_weights(url: str) -> dict[str, Tensor]:
    """The weights to use, on the CPU."""
    path = storage.local_copy(url) / "model.safetensors"
    try:
        return load_file(path)
    except Exception as error:
        raise ClipgenError(
            f"{path} cannot be read ({first_line(error)}): restore it or train again"
        ) from error


def read_training(url: str) -> dict[str, Any]:
    path = storage.local_copy(url) / "training.pt"
    return dict(torch.load(path, map_location="cpu", weights_only=True))


def _read_json(url: str, name: str) -> Any:
    path = storage.local_copy(url) / name
    if not path.exists():
        raise ClipgenError(f"{url} is no checkpoint: it has no {name}; name a folder step-N")
    return json.loads(path.read_text())
