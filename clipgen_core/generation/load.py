"""Checkpoint folders to models ready to use: frozen, in evaluation mode, on the chosen device.

Also the checkpoints that a training may start from, by their address.
"""

from collections.abc import Collection
from dataclasses import dataclass

from pydantic import ValidationError

from clipgen_core import filesystem
from clipgen_core.device import default_device
from clipgen_core.errors import ClipgenError
from clipgen_core.generation.parts import FILE, Parts, read_parts
from clipgen_core.generation.sources import folder_of
from clipgen_core.models.transformer import Transformer
from clipgen_core.models.vqgan import Vqgan
from clipgen_core.schema import Frozen, TokenManifest
from clipgen_core.settings import clip
from clipgen_core.settings.catalogue import settings_of
from clipgen_core.settings.models import GapConfig, TransformerConfig, VqganConfig
from clipgen_core.training.checkpoint import Checkpoint

# Settings of a model that neither shape its weights nor what it computes once it is trained.
OF_VQGAN_TRAINING = {"image_size"} | {
    f"quantizer.{name}" for name in ("decay", "commitment", "rotation_trick", "replace_below")
}
OF_TRANSFORMER_TRAINING = {"dropout"}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What is known of token shards that are not there yet: fields of their manifest."""

    vqgan: str | None = None
    vqgan_digest: str | None = None
    clip_key: str | None = None
    grid: int | None = None
    codebook_size: int | None = None
    embedding_dim: int | None = None


def images_of(transformer: str) -> str | None:
    """The address of the images table that a transformer was trained on; None if that is not known."""
    codes = Checkpoint(transformer).codes
    return codes.images or None if isinstance(codes, TokenManifest) else None


def load_vqgan(checkpoint: str, device: str | None = None) -> Vqgan:
    """The VQGAN of a checkpoint.

    Args:
        checkpoint: The folder `step-N`, local or an fsspec URL.
        device: Where it runs; the default device if None.

    Returns:
        The model, frozen and in evaluation mode.

    Raises:
        ClipgenError: No whole checkpoint of a VQGAN is there.
    """
    saved = Checkpoint(checkpoint)
    model = Vqgan(_vqgan_settings(saved))
    model.load_state_dict(saved.weights())
    return model.eval().requires_grad_(False).to(device or default_device())


def load_transformer(checkpoint: str, device: str | None = None) -> Transformer:
    """The transformer of a checkpoint.

    Args:
        checkpoint: The folder `step-N`, local or an fsspec URL.
        device: Where it runs; the default device if None.

    Returns:
        The model, frozen and in evaluation mode.

    Raises:
        ClipgenError: No whole checkpoint of a transformer is there.
    """
    saved = Checkpoint(checkpoint)
    codes = saved.codes
    model = Transformer(
        saved.settings("model", TransformerConfig),
        codes.codebook_size,
        codes.grid,
        codes.embedding_dim,
        saved.settings("gap", GapConfig),
    )
    model.load_state_dict(saved.weights())
    return model.eval().requires_grad_(False).to(device or default_device())


def vqgan_to_start_from(address: str, model: VqganConfig) -> Checkpoint:
    """The checkpoint that a VQGAN's training starts from.

    Args:
        address: A checkpoint, a generator folder, or a registered model (`models:/NAME@ALIAS`).
        model: The architecture to train.

    Returns:
        The checkpoint.

    Raises:
        ClipgenError: There is none, or its architecture is another.
    """
    folder = folder_of(address)
    checkpoint = Checkpoint(read_parts(folder).vqgan if filesystem.exists(f"{folder}/{FILE}") else folder)
    saved = _vqgan_settings(checkpoint)
    _require_same(f"the VQGAN at {address}", saved, model, OF_VQGAN_TRAINING)
    return checkpoint


def transformer_to_start_from(
    address: str, model: TransformerConfig, shards: TokenManifest | Inputs
) -> Checkpoint:
    """The checkpoint that a transformer's training starts from.

    Args:
        address: A checkpoint, a generator folder, or a registered model (`models:/NAME@ALIAS`).
        model: The architecture to train.
        shards: What it is to be trained on.

    Returns:
        The checkpoint.

    Raises:
        ClipgenError: There is none, its architecture is another, or its VQGAN or CLIP is.
    """
    parts = read_parts(folder_of(address))
    checkpoint, there = Checkpoint(parts.transformer), f"the transformer at {address}"
    _require_same_inputs(there, parts, checkpoint, shards)
    _require_same(there, checkpoint.settings("model", TransformerConfig), model, OF_TRANSFORMER_TRAINING)
    return checkpoint


def clip_to_start_from(address: str, config: clip.Config) -> Checkpoint:
    """The checkpoint that a CLIP's training starts from.

    Args:
        address: A checkpoint.
        config: The shape to train.

    Returns:
        The checkpoint.

    Raises:
        ClipgenError: There is none of a CLIP, or its shape is another.
    """
    checkpoint = Checkpoint(address)
    try:
        saved = clip.Config.model_validate(checkpoint.provenance.config)
    except ValidationError as error:
        raise ClipgenError(f"{address} is no checkpoint of a CLIP: give the folder step-N of one") from error
    if saved.open_clip_config() != config.open_clip_config():
        raise ClipgenError(
            f"the CLIP at {address} has another shape than the recipe's ({saved.open_clip_config()}): choose "
            "the recipe that fits it, or override its settings"
        )
    return checkpoint


def _vqgan_settings(checkpoint: Checkpoint) -> VqganConfig:
    """The architecture of a VQGAN; a ClipgenError for the checkpoint of another model."""
    model = checkpoint.provenance.config.get("model")
    if not isinstance(model, dict) or "quantizer" not in model:
        raise ClipgenError(f"{checkpoint.url} is no VQGAN checkpoint: give the folder step-N of one")
    return checkpoint.settings("model", VqganConfig)


def _require_same_inputs(
    there: str, parts: Parts, checkpoint: Checkpoint, shards: TokenManifest | Inputs
) -> None:
    codes = checkpoint.codes
    imported = Checkpoint(shards.vqgan).provenance.imported if shards.vqgan else None
    if shards.vqgan and codes.vqgan_digest not in (shards.vqgan_digest, imported and imported.sha256):
        raise ClipgenError(
            f"{there} was trained on codes of the VQGAN {codes.vqgan_digest}, the token shards hold codes of "
            f"{shards.vqgan_digest}, which mean something else: train without start_from"
        )
    if shards.clip_key not in (None, parts.clip_key):
        raise ClipgenError(
            f"{there} was trained on embeddings of the CLIP {parts.clip_key}, the token shards hold those of "
            f"{shards.clip_key}: train without start_from"
        )
    for name in ("grid", "codebook_size", "embedding_dim"):
        if getattr(shards, name) not in (None, getattr(codes, name)):
            raise ClipgenError(
                f"{there} has {name} {getattr(codes, name)}, the token shards have {getattr(shards, name)}: "
                "train without start_from"
            )


def _require_same(there: str, saved: Frozen, config: Frozen, ignored: Collection[str]) -> None:
    own, other = ({one.name: one.value for one in settings_of(each)} for each in (config, saved))
    different = [
        f"model.{name} {other.get(name)} instead of {value}"
        for name, value in own.items()
        if name not in ignored and other.get(name) != value
    ]
    if different:
        raise ClipgenError(
            f"{there} has another shape than the recipe's ({', '.join(different)}): choose the recipe that "
            "fits it, or override its model settings"
        )
