"""Settings of the stage clip."""

from typing import Any

from pydantic import Field, model_validator

from clipgen_core.errors import ClipgenError
from clipgen_core.schema import Frozen
from clipgen_core.settings.training import TrainConfig

HEAD = 64  # width of an attention head
VOCABULARY = 49408  # of open_clip's own tokenizer


class Config(Frozen):
    """A dual encoder of open_clip's own classes, and its training."""

    train: TrainConfig
    """Optimization of both encoders."""
    image_size: int = Field(default=64, gt=0)
    """Side of the square input images, in pixels. Must be a multiple of `patch_size`."""
    patch_size: int = Field(default=8, gt=0)
    """Side of a patch of the vision transformer, in pixels."""
    embed_dim: int = Field(default=256, gt=0)
    """Dimension of the embedding space that images and texts share."""
    vision_width: int = Field(default=256, gt=0, multiple_of=HEAD)
    """Width of the vision transformer. Must be a multiple of 64, the width of an attention head."""
    vision_layers: int = Field(default=6, gt=0)
    """Blocks of the vision transformer."""
    text_width: int = Field(default=256, gt=0, multiple_of=HEAD)
    """Width of the text transformer. Must be a multiple of 64, the width of an attention head."""
    text_layers: int = Field(default=3, gt=0)
    """Blocks of the text transformer."""
    context_length: int = Field(default=24, ge=3)
    """Length of a text in tokens. Longer captions are cut off."""
    smallest_crop: float = Field(default=0.8, gt=0, le=1)
    """Smallest side of the random training crops, as a share of the image's short side."""
    patch_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the image patches that are left out in training, which saves time (FLIP, arXiv:2212.00794)."""
    soften: float = Field(default=0.0, ge=0, lt=1)
    """Share of an image's target probability that goes to other captions of the batch, by the words they
    share (after SoftCLIP, arXiv:2303.17561). It improves retrieval beyond the first rank."""
    start_from: str | None = Field(default=None, min_length=1)
    """Weights of the same shape to start from: `latest`, the newest CLIP checkpoint under the root; or the
    address of a checkpoint. Null: train from scratch."""

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.image_size % self.patch_size:
            raise ClipgenError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}: change one"
            )
        return self

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
                "head_width": HEAD,
                "patch_dropout": patch_dropout,
            },
            "text_cfg": {
                "context_length": self.context_length,
                "vocab_size": VOCABULARY,
                "width": self.text_width,
                "heads": self.text_width // HEAD,
                "layers": self.text_layers,
            },
        }
