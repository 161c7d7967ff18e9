"""Settings of the stage vqgan."""

from typing import Annotated

from pydantic import Field, model_validator

from clipgen_core.errors import ClipgenError
from clipgen_core.schema import Frozen
from clipgen_core.settings.catalogue import MAY_CHANGE
from clipgen_core.settings.models import VqganConfig
from clipgen_core.settings.training import TrainConfig


class Config(Frozen):
    """The VQGAN, its training, and the terms of its loss."""

    model: VqganConfig
    """Architecture of the VQGAN."""
    train: TrainConfig
    """Optimization of the VQGAN and of its discriminator."""
    where: str | None = Field(default=None, min_length=1)
    """Which images the VQGAN is trained on: an SQL condition on the columns of the images table, such
    as `score > 5 AND license IN ('cc0', 'cc-by')`. Set `tokens.where` alike, or the transformer is trained on
    others. Null: all."""
    smallest_crop: float = Field(default=0.8, gt=0, le=1)
    """Smallest side of the random training crops, as a share of the image's short side."""
    perceptual: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Weight of the perceptual loss, relative to the L1 loss of the pixels."""
    perceptual_blocks: int | None = Field(default=None, gt=0)
    """First blocks of CLIP's image tower that measure the perceptual distance. Null: all of them."""
    lpips_weights: str | None = None
    """File of torchvision's VGG16 weights: measure by LPIPS (arXiv:1801.03924) instead of by CLIP."""
    adversarial: float = Field(default=0.8, ge=0, allow_inf_nan=False)
    """Weight of the adversarial loss, times VQGAN's adaptive weight (arXiv:2012.09841, equation 7). 0: train
    without a discriminator."""
    adversarial_from: float = Field(default=0.6, ge=0, le=1)
    """Share of the steps after which the adversarial loss is switched on."""
    discriminator_width: int = Field(default=64, gt=0, multiple_of=8)
    """Channels of the discriminator's first layer, a multiple of 8. They double with each further layer."""
    discriminator_layers: int = Field(default=2, gt=0)
    """Downsampling layers of the PatchGAN discriminator (arXiv:1611.07004). More see larger patches."""
    lecam: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Weight of the discriminator's LeCam regularisation (arXiv:2104.03310), for small data sets."""
    gradient_penalty: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Weight of the discriminator's gradient penalty on real images (R1, arXiv:1801.04406)."""
    recompute: Annotated[bool, MAY_CHANGE] = False
    """Whether to recompute the blocks of encoder and decoder in the backward pass (activation checkpointing):
    slower, less memory."""
    start_from: str | None = Field(default=None, min_length=1)
    """Weights of the same architecture to start from (fine-tuning): `latest`, the newest VQGAN checkpoint
    under the root, imported ones included; the address of a checkpoint or of a generator folder; or a
    registered model, `models:/NAME@ALIAS`. Null: train from scratch."""

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.train.optimizer != "adamw":
            raise ClipgenError(
                f"the VQGAN, whose weights are convolutions, does not train by {self.train.optimizer}: "
                "set vqgan.train.optimizer to adamw"
            )
        return self
