"""Checkpoint folders to models ready to use: frozen, in evaluation mode, on the chosen device."""

from clipgen_core.device import default_device
from clipgen_core.errors import ClipgenError
from clipgen_core.models.transformer import Transformer
from clipgen_core.models.vqgan import Vqgan
from clipgen_core.settings.models import GapConfig, TransformerConfig, VqganConfig
from clipgen_core.training.checkpoint import Checkpoint


def load_vqgan(checkpoint: str, device: str | None = None, same_as: VqganConfig | None = None) -> Vqgan:
    """The VQGAN of a checkpoint.

    Args:
        checkpoint: The folder `step-N`, local or an fsspec URL.
        device: Where it runs; the default device if None.
        same_as: The shape that it must have.

    Returns:
        The model, frozen and in evaluation mode.

    Raises:
        ClipgenError: No whole checkpoint is there, or its shape is another.
    """
    saved = Checkpoint(checkpoint)
    config = saved.settings("model", VqganConfig)
    if same_as and same_as != config:
        raise ClipgenError(
            f"the VQGAN at {checkpoint} has another shape ({config}) than the recipe's: choose the recipe "
            "that fits it, or override its model settings"
        )
    model = Vqgan(config)
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
