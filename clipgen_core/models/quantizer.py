"""Vector quantization by vector-quantize-pytorch, always in fp32.

Knows codebooks; knows nothing of images.
"""

import math
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ, SimVQ, VectorQuantize

from clipgen_core.errors import ClipgenError
from clipgen_core.schema import Frozen


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


class Quantizer(nn.Module):
    """Features to codes and back."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook_size = config.codebook_size
        self.vq = _layer(config)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[n, d, h, w] to (quantized [n, d, h, w], codes [n, h, w] int64, commitment loss)."""
        with torch.autocast(features.device.type, enabled=False):
            quantized, codes, *loss = self.vq(features.float())
        return quantized, codes.long(), loss[0].sum() if loss else quantized.new_zeros(())

    @property
    def codebook(self) -> Tensor:
        """The code vectors, [codebook_size, code_dim]."""
        codes = torch.arange(self.codebook_size, device=next(self.vq.buffers()).device)
        return self.lookup(codes.view(1, -1, 1)).squeeze(-1).squeeze(0).T

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes [n, h, w] to features [n, d, h, w]."""
        known = self.config.kind in ("ema", "cosine")
        vq: Any = self.vq
        features: Tensor = (vq.get_output_from_indices if known else vq.indices_to_codes)(codes)
        return features


def _layer(config: QuantizerConfig) -> nn.Module:
    if config.kind == "fsq":
        return FSQ(list(config.levels), preserve_symmetry=True)
    if config.kind == "simvq":
        return SimVQ(
            config.code_dim,
            config.codebook_size,
            channel_first=True,
            rotation_trick=config.rotation_trick,
            input_to_quantize_commit_loss_weight=config.commitment,
        )
    return VectorQuantize(
        dim=config.code_dim,
        codebook_size=config.codebook_size,
        decay=config.decay,
        commitment_weight=config.commitment,
        use_cosine_sim=config.kind == "cosine",
        rotation_trick=config.rotation_trick,
        threshold_ema_dead_code=config.revive_below,
        kmeans_init=True,
        accept_image_fmap=True,
    )


def usage_and_perplexity(counts: Tensor) -> tuple[float, float]:
    """Share of codes in use, and exp(entropy) of the codes' distribution, from counts [codebook]."""
    share = counts.double() / counts.sum().clamp(min=1)
    entropy = -(share * share.clamp(min=1e-12).log()).sum()
    return (counts > 0).double().mean().item(), entropy.exp().item()
