"""Checkpoint folders to models ready to use: frozen, in evaluation mode, on the device at hand."""

from typing import TypeVar

from pydantic import ValidationError

from clipgen_core.device import default_device
from clipgen_core.errors import ClipgenError
from clipgen_core.models.transformer import Transformer
from clipgen_core.models.vqgan import Vqgan
from clipgen_core.schema import Frozen
from clipgen_core.settings.models import GapConfig, TransformerConfig, VqganConfig
from clipgen_core.training.checkpoint import read_config, read_weights

Config = TypeVar("Config", bound=Frozen)


def load_vqgan(checkpoint: str, device: str | None = None, same_as: VqganConfig | None = None) -> Vqgan:
    config = _config(VqganConfig, checkpoint, "model")
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
    tokens = made_from["tokens"]
    model = Transformer(
        _config(TransformerConfig, checkpoint, "model"),
        tokens["codebook_size"],
        tokens["grid"],
        tokens["embedding_dim"],
        _config(GapConfig, checkpoint, "gap"),
    )
    model.load_state_dict(read_weights(checkpoint))
    return model.eval().requires_grad_(False).to(device or default_device())


def _config(kind: type[Config], checkpoint: str, part: str) -> Config:
    try:
        return kind.model_validate(read_config(checkpoint)["config"].get(part))
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, [part, *problem["loc"]]))
        raise ClipgenError(
            f"{checkpoint}/config.json has a setting that this version does not know "
            f"({name}: {problem['msg']}): train again, or use the version that wrote it"
        ) from error
