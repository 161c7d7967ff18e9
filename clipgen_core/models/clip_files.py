"""Load any model of open_clip by its reference, and name it by a digest of its weights.

Knows where the files of a model are; does not know how the model is used.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, not in __all__
from torch import device, nn, uint8

from clipgen_core.downloads import local_copy
from clipgen_core.errors import ClipgenError, first_line
from clipgen_core.extras import needed_for
from clipgen_core.schema import CLIP_CONFIG, CLIP_WEIGHTS, HF_HUB, HF_REPOSITORY, HUB, LOCAL
from clipgen_core.settings.catalogue import suggestion


def load(reference: str) -> tuple[nn.Module, Any, Any]:
    """Load a model.

    Args:
        reference: As `ClipEncoder` takes it.

    Returns:
        The model, the preprocessing of its images, and its tokenizer.

    Raises:
        ClipgenError: The reference is unknown, its files cannot be used or fetched, or a package is missing.
    """
    name, pretrained = _parse(reference)
    try:
        settings = _model_config(name)
        with needed_for(f"CLIP {reference}"), without_messages():
            if settings["text_cfg"].get("hf_model_name"):
                import transformers  # noqa: F401  # open_clip raises no ImportError of its own
            model, preprocess = open_clip.create_model_from_pretrained(
                name, pretrained=pretrained, **_own_text_tower(name, settings)
            )
    except ClipgenError:
        raise
    except Exception as error:
        raise _unusable(reference, error) from error
    return model, preprocess, _tokenizer(reference, name)


def needs_transformers(reference: str) -> bool:
    """Whether a model's text tower or its tokenizer is one of the package transformers.

    Raises:
        ClipgenError: The reference is unknown, or its configuration cannot be read.
    """
    name, _ = _parse(reference)
    try:
        text = _model_config(name)["text_cfg"]
    except Exception as error:
        raise _unusable(reference, error) from error
    return bool(text.get("hf_model_name") or text.get("hf_tokenizer_name"))


def unfilled(reference: str, most: int) -> nn.Module:
    """The model that a folder describes, without memory for its weights.

    Args:
        reference: `local-dir:FOLDER`, which needs no weights.
        most: Tensors that the model has at most.

    Returns:
        The model, on the device `meta`.

    Raises:
        ValueError: The folder describes no model, or a larger one.
    """
    settings = _model_config(reference)
    numbers = list(_integers(settings))
    layers = sum(value for name, value in numbers if "layers" in name)
    if layers > most or any(value > 2**20 for _, value in numbers):
        raise ValueError(f"{CLIP_CONFIG} describes another model than the weights")
    own = _own_text_tower(reference, settings)
    with device("meta"), without_messages():
        model: nn.Module = open_clip.create_model(
            reference, load_weights=False, pretrained_text=False, device="meta", **own
        )
    return model


def _integers(settings: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """All integers in the configuration of a model, each with the key that it is under."""
    if isinstance(settings, int):
        yield name, settings
    for key, value in settings.items() if isinstance(settings, dict) else ():
        yield from _integers(value, key)
    for value in settings if isinstance(settings, list | tuple) else ():
        yield from _integers(value, name)


def absolute(reference: str) -> str:
    """A reference as it can be used from another working directory."""
    folder = reference.removeprefix(LOCAL)
    if folder == reference or "://" in folder:
        return reference
    return f"{LOCAL}{Path(folder).resolve()}"


def key(reference: str, model: nn.Module) -> str:
    """Name a model by its reference and its weights.

    Args:
        reference: As `load` takes it.
        model: As `load` returned it.

    Returns:
        A name that files can have.
    """
    return f"{_safe_name(reference)}-{_digest(model)}"


def _parse(reference: str) -> tuple[str, str | None]:
    """The name and the weights' tag as open_clip takes them."""
    if reference.startswith(LOCAL):
        return f"{LOCAL}{_checked(local_copy(reference.removeprefix(LOCAL)))}", None
    return (reference, None) if hub_repository(reference) else hub_name(reference)


def hub_repository(reference: str) -> str | None:
    """The repository of the Hugging Face Hub that a reference names; None for other references.

    Raises:
        ClipgenError: The Hub allows no such name.
    """
    if not re.fullmatch(HF_REPOSITORY, reference):
        return None
    repository = reference.removeprefix(HF_HUB)
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ClipgenError(
            f"CLIP reference {reference!r} names no repository ({first_line(error)}): write it as "
            f"{HF_HUB}ORG/NAME"
        ) from error
    return repository


def hub_name(reference: str) -> tuple[str, str]:
    """The name of a model and the tag of its weights, in a reference to open_clip's own.

    Raises:
        ClipgenError: The reference is of no known form, or open_clip has no such weights.
    """
    model, _, pretrained = reference.removeprefix(HUB).partition("/")
    if not reference.startswith(HUB) or not pretrained:
        raise ClipgenError(
            f"CLIP reference {reference!r} is neither {HUB}MODEL/PRETRAINED nor {HF_HUB}ORG/NAME nor "
            f"{LOCAL}FOLDER"
        )
    if (model, pretrained) not in open_clip.list_pretrained():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model))
        if tags:
            raise ClipgenError(f"open_clip has {tags} for {model!r}, not {pretrained!r}: choose one of them")
        hint = suggestion(model, {name for name, _ in open_clip.list_pretrained()})
        raise ClipgenError(f"open_clip has no model {model!r} with weights{hint or ': choose another one'}")
    return model, pretrained


def _checked(folder: Path) -> Path:
    if not (folder / CLIP_CONFIG).is_file():
        raise ClipgenError(f"CLIP folder {folder} has no {CLIP_CONFIG}: check the path")
    if not any((folder / file).is_file() for file in CLIP_WEIGHTS):
        raise ClipgenError(
            f"CLIP folder {folder} has neither {CLIP_WEIGHTS[0]} nor {CLIP_WEIGHTS[-1]}: copy one there"
        )
    return folder


def _model_config(name: str) -> dict[str, Any]:
    config = open_clip.get_model_config(name)
    if not (isinstance(config, dict) and {"text_cfg", "vision_cfg", "embed_dim"} <= config.keys()):
        raise ValueError(f"{CLIP_CONFIG} describes no model")
    return config


def _own_text_tower(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments that make open_clip read the configuration of a Hugging Face text tower from a folder beside
    the weights, where the folder has one: its name is relative to the CLIP's folder."""
    tower = settings["text_cfg"].get("hf_model_name")
    folder = Path(name.removeprefix(LOCAL)) / (tower or "")
    if not (tower and name.startswith(LOCAL) and (folder / "config.json").is_file()):
        return {}
    return {"text_cfg": {**settings["text_cfg"], "hf_model_name": str(folder), "hf_model_pretrained": False}}


def _tokenizer(reference: str, name: str) -> Any:
    try:
        with needed_for(f"the tokenizer of {reference}"), without_messages():
            return open_clip.get_tokenizer(name)
    except ClipgenError:
        raise
    except Exception as error:
        hint = "put its files (tokenizer.json, tokenizer_config.json) beside the weights"
        if isinstance(error, ImportError):  # of a package that transformers asks for
            hint = "pip install 'clipgen[siglip]'"
        elif not reference.startswith(LOCAL):
            hint = f"check the network, or name a downloaded model by {LOCAL}FOLDER"
        raise ClipgenError(
            f"the tokenizer of CLIP {reference!r} cannot be read ({first_line(error)}): {hint}"
        ) from error


def _unusable(reference: str, error: Exception) -> ClipgenError:
    if not reference.startswith(LOCAL):
        return ClipgenError(
            f"CLIP {reference!r} could not be fetched ({first_line(error)}): check the network, "
            f"or name a downloaded model by {LOCAL}FOLDER"
        )
    return ClipgenError(
        f"CLIP {reference!r} cannot be read ({first_line(error)}): the folder needs "
        f"{CLIP_CONFIG} and {CLIP_WEIGHTS[0]} or {CLIP_WEIGHTS[-1]} that belong together"
    )


@contextmanager
def without_messages() -> Iterator[None]:
    """Leave out what open_clip logs, such as that a model without weights has none."""

    def is_other(record: logging.LogRecord) -> bool:
        return "open_clip" not in record.pathname

    logging.getLogger().addFilter(is_other)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(is_other)


def _safe_name(reference: str) -> str:
    if reference.startswith(LOCAL):
        folder = local_copy(reference.removeprefix(LOCAL))
        size = (
            json.loads((folder / CLIP_CONFIG).read_text())["model_cfg"]
            .get("vision_cfg", {})
            .get("image_size", "")
        )
        return f"local-{'x'.join(map(str, size)) if isinstance(size, list) else size}px"
    return re.sub(r"[^\w.-]+", "-", reference.removeprefix(HF_HUB).removeprefix(HUB))


def _digest(model: nn.Module) -> str:
    """The first 12 hex digits of a SHA-256 over the names and values of all weights."""
    combined = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        combined.update(name.encode())
        combined.update(
            value.detach().cpu().contiguous().view(uint8).numpy().tobytes()
            if value.ndim
            else str(value.item()).encode()
        )
    return combined.hexdigest()[:12]
