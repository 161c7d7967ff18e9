"""What a training does when its disk is full."""

import errno
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from clipgen_core import filesystem
from clipgen_core.errors import ClipgenError
from clipgen_core.training.checkpoint import Checkpoint
from tests.core.training.test_loop import LineTask, config, same, train


def raising(error: Exception, write: Callable[..., Any], after: int = 0) -> Callable[..., Any]:
    """A writer that raises at every call after the first ones."""
    calls: list[object] = []

    def writer(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) > after:
            raise error
        return write(*arguments)

    return writer


@pytest.mark.parametrize(
    ("name", "writer", "error"),
    [
        (
            "save_file",
            save_file,
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        ),
        ("torch.save", torch.save, OSError(errno.ENOSPC, "No space left on device")),
        ("filesystem.draft_folder", filesystem.draft_folder, OSError(errno.EDQUOT, "Disk quota exceeded")),
    ],
)
def test_a_full_disk_is_one_sentence_and_leaves_the_checkpoints(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    writer: Callable[..., Any],
    error: Exception,
) -> None:
    whole = train(tmp_path / "whole", LineTask(), config())
    with monkeypatch.context() as patch:
        patch.setattr(f"clipgen_core.training.checkpoint.{name}", raising(error, writer, after=2))
        with pytest.raises(
            ClipgenError, match=f"the disk of {tmp_path}/parts is full, so the checkpoint of step 15"
        ):
            train(tmp_path / "parts", LineTask(), config())
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == ["step-00000005", "step-00000010"]
    parts = train(tmp_path / "parts", LineTask(), config())
    assert same(Checkpoint(whole.checkpoint).weights(), Checkpoint(parts.checkpoint).weights())


def test_other_faults_of_a_writer_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "clipgen_core.training.checkpoint.save_file", raising(PermissionError("no"), save_file)
    )
    with pytest.raises(PermissionError, match="no"):
        train(tmp_path, LineTask(), config())


def test_what_torch_says_of_a_full_disk_is_understood(tmp_path: Path) -> None:
    class Full(io.RawIOBase):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ClipgenError, match="make room"), filesystem.room_needed("make room"):
        torch.save({"a": torch.zeros(10)}, Full())
