"""The architectures of the models that are trained."""

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from clipgen_core.errors import ClipgenError
from clipgen_core.schema import Frozen

Order = Literal["raster", "annealed", "any"]

GROUPS = 32  # of every group norm of the VQGAN


class QuantizerConfig(Frozen):
    """How the encoder's features become discrete codes."""

    kind: Literal["ema", "cosine", "simvq", "fsq", "ibq"] = "ema"
    """`ema`: codes are running means of their features (VQ-VAE, arXiv:1711.00937, appendix A.1), started by
    k-means. `cosine`: the same on features of length 1 (ViT-VQGAN, arXiv:2110.04627). `simvq`: a frozen
    random codebook behind a learned linear layer (arXiv:2411.02038). `fsq`: each dimension is rounded to
    one of `levels` values, without a codebook to learn (arXiv:2309.15505). `ibq`: the code of the largest
    inner product; the gradient reaches all codes (arXiv:2412.02692)."""
    codebook_size: int = Field(gt=1)
    """Number of codes."""
    code_dim: int = Field(gt=0)
    """Dimension of a code vector."""
    levels: tuple[int, ...] = ()
    """For `fsq` only: number of values of each dimension. Their product must be `codebook_size`."""
    decay: float = Field(default=0.95, gt=0, lt=1)
    """For `ema` and `cosine`: decay of the running means. Higher moves the codes more slowly."""
    commitment: float = Field(default=0.25, ge=0)
    """Weight of the commitment loss, which pulls features towards their codes. `fsq` has none."""
    rotation_trick: bool = True
    """Pass the gradient through the rotation from feature to code (arXiv:2410.06424) instead of straight
    through. `fsq` has no rotation."""
    replace_below: float = Field(default=0.125, ge=0, lt=1)
    """For `ema` and `cosine`: a code is replaced by a random feature when its running count falls below this
    share of the mean count of all codes. 0: never. Codes of an imported VQGAN are never replaced."""

    @model_validator(mode="before")
    @classmethod
    def _read_version_0_1(cls, values: Any) -> Any:
        """Records of version 0.1 hold an absolute count, of which only 0 means the same now."""
        if isinstance(values, dict) and "revive_below" in values:
            values = dict(values)
            if values.pop("revive_below") == 0:
                values.setdefault("replace_below", 0.0)
        return values

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
    """The architecture of the VQGAN (arXiv:2012.09841).

    It downsamples by `patch * 2 ** (len(channels) - 1)`.
    """

    image_size: int = Field(gt=0)
    """Side of the square images, in pixels. Must be a multiple of the downsampling factor."""
    channels: tuple[int, ...] = Field(min_length=1)
    """Channels of each resolution level, finest first; each level halves the side. Multiples of 32."""
    blocks: int = Field(default=2, gt=0)
    """Residual blocks of each level of the encoder."""
    decoder_blocks: int = Field(default=3, gt=0)
    """Residual blocks of each level of the decoder."""
    patch: int = Field(default=1, gt=0)
    """Side of the patches that are folded into channels before the first level, in pixels. More is faster
    and loses detail; 1 folds nothing."""
    attention: Literal["middle", "coarsest"] = "coarsest"
    """Self-attention in the `middle` alone, or also after every block of the `coarsest` level."""
    z_channels: int = Field(default=256, gt=0)
    """Channels of the encoder's output, before the projection to the code dimension."""
    norm_epsilon: float = Field(default=1e-6, gt=0, allow_inf_nan=False)
    """Epsilon of the group norms, as in taming-transformers."""
    quantizer: QuantizerConfig
    """How the encoder's features become discrete codes."""

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
        if any(c % GROUPS or c <= 0 for c in self.channels):
            raise ClipgenError(f"channels {self.channels} must be multiples of {GROUPS}")
        return self


class TransformerConfig(Frozen):
    """The architecture of the decoder-only transformer."""

    width: int = Field(gt=0)
    """Width of the residual stream. Must be a multiple of `heads`."""
    layers: int = Field(gt=0)
    """Transformer blocks."""
    heads: int = Field(gt=0)
    """Attention heads of each block."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout probability of the input and of the output of every attention and feed-forward layer."""
    norm: Literal["rms", "layer"] = "rms"
    """`rms`: RMSNorm (arXiv:1910.07467), faster on GPUs. `layer`: LayerNorm, faster on CPUs."""
    feed_forward: Literal["swiglu", "gelu"] = "swiglu"
    """Feed-forward layers: `swiglu` (arXiv:2002.05202), or `gelu` as in GPT-2."""
    positions: Literal["rope", "learned"] = "rope"
    """`rope`: 2-D rotary embedding (arXiv:2104.09864). `learned`: a position embedding, as in GPT-2."""
    qk_norm: bool = True
    """Whether to normalise queries and keys (arXiv:2010.04245), which keeps training stable."""
    bias: bool = False
    """Whether linear layers and layer norms have biases, as in GPT-2."""
    details: Literal["clipgen", "llamagen"] = "clipgen"
    """`llamagen`: details of LlamaGen's code (arXiv:2406.06525), which its published weights need. RMSNorm's
    epsilon is 1e-5 instead of 1e-6, the hidden width of `swiglu` is a multiple of 256 instead of 32, and
    under `rope` the queries and keys of the prefix tokens are zero."""
    condition: Literal["token", "everywhere"] = "token"
    """How the CLIP embedding conditions the model. `token`: as the first token. `everywhere`: also as a
    global condition, added to every input and through adaptive layer norm in every block (adaLN,
    arXiv:2212.09748)."""
    neighbours: int = Field(default=0, ge=0)
    """Neighbour embeddings given besides the image's own embedding, each as one token."""
    order: Order = "raster"
    """The order in which codes are predicted. `raster`: row by row, one at a time. `annealed`: the same, but
    training begins with random orders (RAR, arXiv:2411.00776). `any`: several at a time in any order, which
    takes fewer steps, and can edit."""

    @model_validator(mode="after")
    def _check(self) -> "TransformerConfig":
        if self.width % self.heads:
            raise ClipgenError(f"width {self.width} is not divisible by {self.heads} heads")
        if self.positions == "rope" and self.width // self.heads % 4:
            raise ClipgenError(
                f"2-D RoPE needs a head width divisible by 4, not {self.width // self.heads}: change heads"
            )
        if self.order != "raster" and self.details == "llamagen":
            raise ClipgenError("details llamagen belong to published raster models: set order to raster")
        return self


class GapConfig(Frozen):
    """Training against the gap between CLIP's text and image embeddings."""

    noise: Literal["none", "isotropic", "residual"] = "none"
    """Noise added to training embeddings: `none`, `isotropic`, or `residual`, which has the covariance of
    the difference between texts and their nearest images."""
    cosine: float = Field(default=0.32, gt=0, lt=1)
    """Cosine similarity of the noisy to the clean embedding. About 0.32 in LAFITE (arXiv:2111.13792), CapDec
    (arXiv:2211.00575) and C3 (arXiv:2401.08567)."""
    centred: bool = False
    """Whether to subtract the mean of all image embeddings from images, and that of texts from texts (C3,
    arXiv:2401.08567)."""
