"""Settings of the stage vqgan."""

from pydantic import Field

from clipgen_core.schema import Frozen
from clipgen_core.settings.models import VqganConfig
from clipgen_core.settings.training import TrainConfig


class Config(Frozen):
    """perceptual_blocks: how many of CLIP's blocks measure the perceptual distance, all if None;
    lpips_weights: measure by LPIPS instead, with torchvision's VGG16 weights at this path;
    adversarial_from: the share of training after which the discriminator joins;
    lecam, gradient_penalty: weights of the discriminator's regularisers;
    start_from: a VQGAN checkpoint of the same shape to go on from (fine-tuning)."""

    model: VqganConfig
    train: TrainConfig
    smallest_crop: float = Field(default=0.8, gt=0, le=1)
    perceptual: float = Field(default=1.0, ge=0)
    perceptual_blocks: int | None = Field(default=None, gt=0)
    lpips_weights: str | None = None
    adversarial: float = Field(default=0.8, ge=0)
    adversarial_from: float = Field(default=0.6, ge=0, le=1)
    discriminator_width: int = 64
    discriminator_layers: int = 2
    lecam: float = Field(default=0.0, ge=0)
    gradient_penalty: float = Field(default=0.0, ge=0)
    start_from: str | None = None
