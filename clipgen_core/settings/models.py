"""The shapes of the models that are trained."""

import math
from typing import Literal

from pydantic import Field, model_validator

from clipgen_core.errors import ClipgenError
from clipgen_core.schema import Frozen

GROUPS = 32  # of every group norm of the VQGAN


class QuantizerConfig(Frozen):
    """kind: how features become codes.

    ema     codes are running means of the features they stand for (van den Oord et al. 2017, appendix A.1);
            k-means start, dead codes revived
    cosine  the same on features of length 1 (ViT-VQGAN, arXiv:2110.04627; LlamaGen)
    simvq   a frozen random codebook behind one learned linear layer (arXiv:2411.02038)
    fsq     each feature rounded to one of `levels` values: no codebook to learn (arXiv:2309.15505)

    commitment: weight of the pull of features towards their codes; rotation_trick: pass the gradient
    through the rotation from feature to code instead of straight (arXiv:2410.06424), where there is one;
    revive_below: replace codes whose running count falls below.
    """

    kind: Literal["ema", "cosine", "simvq", "fsq"] = "ema"
    codebook_size: int = Field(gt=1)
    code_dim: int = Field(gt=0)
    levels: tuple[int, ...] = ()
    decay: float = Field(default=0.95, gt=0, lt=1)
    commitment: float = Field(default=0.25, ge=0)
    rotation_trick: bool = True
    revive_below: float = Field(default=0.5, ge=0)

    @model_validator(mode="after")
    def _check(self) -> "QuantizerConfig":
        fits = math.prod(self.levels) == self.codebook_size and len(self.levels) == self.code_dim
        if self.kind == "fsq" and not fits:
            raise ClipgenError(
                f"fsq levels {self.levels} do not make codebook_size {self.codebook_size} of code_dim "
                f"{self.code_dim}: their product must be the size, their number the dimension"
            )
        if self.kind != "fsq" and self.levels:
            raise ClipgenError(f"levels belong to fsq, not to {self.kind}: take them out")
        return self


class VqganConfig(Frozen):
    """channels: one entry a level, finest first; downsampling is patch * 2 ** (levels - 1).

    blocks: residual blocks a level of the encoder; the decoder has `decoder_blocks`.
    attention: in the middle alone, or after every block of the coarsest level too.
    z_channels: width of the encoder's output before it is projected to `code_dim`.
    """

    image_size: int = Field(gt=0)
    channels: tuple[int, ...] = Field(min_length=1)
    blocks: int = Field(default=2, gt=0)
    decoder_blocks: int = Field(default=3, gt=0)
    patch: int = Field(default=1, gt=0)
    attention: Literal["middle", "coarsest"] = "coarsest"
    z_channels: int = Field(default=256, gt=0)
    norm_epsilon: float = 1e-6
    quantizer: QuantizerConfig

    @property
    def downsampling(self) -> int:
        return int(self.patch * 2 ** (len(self.channels) - 1))

    @property
    def grid(self) -> int:
        return self.image_size // self.downsampling

    @model_validator(mode="after")
    def _check(self) -> "VqganConfig":
        if self.image_size % self.downsampling:
            raise ClipgenError(
                f"image_size {self.image_size} is not divisible by the downsampling factor "
                f"{self.downsampling}: choose a multiple of it"
            )
        if any(c % GROUPS for c in self.channels):
            raise ClipgenError(f"channels {self.channels} must be multiples of {GROUPS}")
        return self


class TransformerConfig(Frozen):
    """norm: "layer" is fused on CPUs, "rms" on GPUs; condition: "everywhere" adds the embedding at every
    position and modulates each block by it; neighbours: prefix tokens beside the embedding's own."""

    width: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    norm: Literal["rms", "layer"] = "rms"
    feed_forward: Literal["swiglu", "gelu"] = "swiglu"
    positions: Literal["rope", "learned"] = "rope"
    qk_norm: bool = True
    bias: bool = False
    condition: Literal["token", "everywhere"] = "token"
    neighbours: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> "TransformerConfig":
        if self.width % self.heads:
            raise ClipgenError(f"width {self.width} is not divisible by {self.heads} heads")
        if self.positions == "rope" and self.width // self.heads % 4:
            raise ClipgenError(
                f"2-D RoPE needs a head width divisible by 4, not {self.width // self.heads}: change heads"
            )
        return self


class GapConfig(Frozen):
    """noise: the direction in which a training embedding is moved; cosine: how near it stays (LAFITE,
    CapDec and C3 all use about 0.32); centred: take off the mean of image or text embeddings."""

    noise: Literal["none", "isotropic", "residual"] = "none"
    cosine: float = Field(default=0.32, gt=0, lt=1)
    centred: bool = False
