"""Turns a downloaded file of CLIP weights into a folder that `local-dir:FOLDER` names.

Knows the models that open_clip has; knows nothing of roots.
"""

from pathlib import Path
from typing import Any

import open_clip
from open_clip.push_to_hf_hub import save_config_for_hf
from safetensors.torch import save_file

from clipgen_core import filesystem
from clipgen_core.errors import ClipgenError, first_line
from clipgen_core.models.clip_files import hub_name, without_messages
from clipgen_core.published.files import read_state_dict
from clipgen_core.schema import CLIP_CONFIG, CLIP_WEIGHTS, HUB


def import_clip(file: Path, reference: str, folder: Path) -> None:
    """Write the folder of a CLIP: its weights as safetensors, and its configuration.

    Args:
        file: The weights, as open_clip names them: safetensors, or a state dict of PyTorch.
        reference: Which CLIP they are, as hub:MODEL/PRETRAINED.
        folder: The folder to write, which does not exist yet.

    Raises:
        ClipgenError: The folder exists, open_clip has no such CLIP, or the file cannot be read safely or
            holds other weights.
    """
    name, pretrained = hub_name(reference)
    if folder.exists():
        raise ClipgenError(f"{folder} exists: give the name of a new folder, or remove it")
    weights = read_state_dict(file)
    published = open_clip.get_pretrained_cfg(name, pretrained)
    shape: dict[str, Any] = {**open_clip.get_model_config(name)}
    if published.get("quick_gelu"):
        shape["quick_gelu"] = True
    with without_messages():
        model: Any = open_clip.create_model(name, force_quick_gelu=bool(published.get("quick_gelu")))
    full = f"the disk is full, so {folder} was not written: make room and run again"
    with filesystem.room_needed(full), filesystem.draft_folder(str(folder)) as scratch:
        draft = Path(scratch) / "clip"
        draft.mkdir()
        stored = draft / CLIP_WEIGHTS[0]
        save_file({key: value.contiguous() for key, value in weights.items()}, stored)
        _fit(model, stored, file, reference)
        _preprocess(model.visual, published)
        save_config_for_hf(model, draft / CLIP_CONFIG, shape)
        filesystem.publish_folder(draft, str(folder), CLIP_CONFIG)


def _fit(model: Any, stored: Path, file: Path, reference: str) -> None:
    """Load the weights, so that those of another model are refused now."""
    try:
        with without_messages():
            open_clip.load_checkpoint(model, str(stored))
    except (RuntimeError, KeyError, AttributeError, ValueError) as error:
        raise ClipgenError(
            f"{file} does not hold the weights of {reference.removeprefix(HUB)} as open_clip names them "
            f"({first_line(error)}): download its {' or '.join(CLIP_WEIGHTS[:2])}, or say which CLIP it is"
        ) from error


def _preprocess(visual: Any, published: dict[str, Any]) -> None:
    """Note how this CLIP's images are normalised and resized."""
    visual.image_mean = published.get("mean", visual.image_mean)
    visual.image_std = published.get("std", visual.image_std)
    chosen = {key: published[key] for key in ("interpolation", "resize_mode") if key in published}
    visual.preprocess_cfg = {**getattr(visual, "preprocess_cfg", {}), **chosen}
