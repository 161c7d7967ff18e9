"""Checkpoint folders to models ready to use: frozen, in evaluation mode, on the device at hand."""

from clipgen_core.models.clip import default_device
from clipgen_core.models.transformer import Transformer, TransformerConfig
from clipgen_core.models.vqgan import Vqgan, VqganConfig
from clipgen_core.training.checkpoint import read_config, read_weights


def load_vqgan(checkpoint: str, device: str | None = None) -> Vqgan:
    model = Vqgan(VqganConfig.model_validate(read_config(checkpoint)["config"]["model"]))
    model.load_state_dict(read_weights(checkpoint))
    return model.eval().requires_grad_(False).to(device or default_device())


def load_transformer(checkpoint: str, device: str | None = None) -> Transformer:
    made_from = read_config(checkpoint)
    tokens = made_from["tokens"]
    model = Transformer(
        TransformerConfig.model_validate(made_from["config"]["model"]),
        tokens["codebook_size"],
        tokens["grid"] ** 2,
        tokens["embedding_dim"],
    )
    model.load_state_dict(read_weights(checkpoint))
    return model.eval().requires_grad_(False).to(device or default_device())
