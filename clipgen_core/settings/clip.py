"""Settings of the stage clip."""

from typing import Any

from pydantic import Field

from clipgen_core.schema import Frozen
from clipgen_core.settings.training import TrainConfig


class Config(Frozen):
    """A dual encoder of open_clip's own classes, and its training."""

    train: TrainConfig
    """Optimization of both encoders."""
    image_size: int = 64
    """Side of the square input images, in pixels. Must be a multiple of `patch_size`."""
    patch_size: int = 8
    """Side of a patch of the vision transformer, in pixels."""
    embed_dim: int = 256
    """Dimension of the embedding space that images and texts share."""
    vision_width: int = 256
    """Width of the vision transformer. Must be a multiple of 64, the width of an attention head."""
    vision_layers: int = 6
    """Blocks of the vision transformer."""
    text_width: int = 256
    """Width of the text transformer. Must be a multiple of 64, the width of an attention head."""
    text_layers: int = 3
    """Blocks of the text transformer."""
    context_length: int = 24
    """Length of a text in tokens. Longer captions are cut off."""
    smallest_crop: float = 0.8
    """Smallest side of the random training crops, as a share of the image's short side."""
    patch_dropout: float = 0.0
    """Share of the image patches that are left out in training, which saves time (FLIP, arXiv:2212.00794)."""
    soften: float = Field(default=0.0, ge=0, lt=1)
    """Share of an image's target probability that goes to other captions of the batch, by the words they
    share (after SoftCLIP, arXiv:2303.17561). It improves retrieval beyond the first rank."""
    start_from: str | None = None
    """Weights of the same shape to start from: `latest`, the newest CLIP checkpoint under the root; or the
    address of a checkpoint. Null: train from scratch."""

    def open_clip_config(self, patch_dropout: float = 0.0) -> dict[str, Any]:
        """The model configuration that open_clip expects.

        Args:
            patch_dropout: Share of the patches to leave out; 0 outside training.
        """
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
