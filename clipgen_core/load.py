"""Checkpoint folders to models ready to use: frozen, in evaluation mode, on the device at hand."""

from clipgen_core.errors import ClipgenError
from clipgen_core.gap import GapConfig
from clipgen_core.models.clip import default_device
from clipgen_core.models.transformer import Transformer, TransformerConfig
from clipgen_core.models.vqgan import Vqgan, VqganConfig
from clipgen_core.training.checkpoint import read_config, read_weights


def load_vqgan(checkpoint: str, device: str | None = None, same_as: VqganConfig | None = None) -> Vqgan:
    config = VqganConfig.model_validate(read_config(checkpoint)["config"]["model"])
    if same_as and same_as != config:
        raise ClipgenError(
            f"the VQGAN at {checkpoint} has another shape ({config}) than the recipe's: choose the recipe "
            "that fits it, or override its model settings"
        )
    model = Vqgan(config)
    model.load_state_dict(read_weights(checkpoint))
    return model.eval().requires_grad_(False).to(device or default_device())


def load_transformer(checkpoint: str, device: str | None = None) -> Transformer:
    made_from = read_config(checkpoint)
    config, tokens = made_from["config"], made_from["tokens"]
    model = Transformer(
        TransformerConfig.model_validate(config["model"]),
        tokens["codebook_size"],
        tokens["grid"],
        tokens["embedding_dim"],
        GapConfig.model_validate(config["gap"]),
    )
    model.load_state_dict(read_weights(checkpoint))
    return model.eval().requires_grad_(False).to(device or default_device())
