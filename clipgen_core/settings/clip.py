"""Settings of the stage clip."""

from typing import Any

from pydantic import Field

from clipgen_core.schema import Frozen
from clipgen_core.settings.training import TrainConfig


class Config(Frozen):
    """A dual encoder after open_clip's own classes, and its training.

    soften: the share of what a picture is matched with that goes to the batch's other texts, by the words
    that their captions have in common: so the second best are alike too, which retrieval lives on."""

    train: TrainConfig
    image_size: int = 64
    patch_size: int = 8
    embed_dim: int = 256
    vision_width: int = 256
    vision_layers: int = 6
    text_width: int = 256
    text_layers: int = 3
    context_length: int = 24
    smallest_crop: float = 0.8
    patch_dropout: float = 0.0
    soften: float = Field(default=0.0, ge=0, lt=1)

    def open_clip_config(self, patch_dropout: float = 0.0) -> dict[str, Any]:
        """open_clip's model config; patches are dropped in training only (FLIP, arXiv:2212.00794)."""
        return {
            "embed_dim": self.embed_dim,
            "vision_cfg": {
                "image_size": self.image_size,
                "patch_size": self.patch_size,
                "width": self.vision_width,
                "layers": self.vision_layers,
                "head_width": 64,
                "patch_dropout": patch_dropout,
            },
            "text_cfg": {
                "context_length": self.context_length,
                "vocab_size": 49408,
                "width": self.text_width,
                "heads": self.text_width // 64,
                "layers": self.text_layers,
            },
        }
