"""Vector quantization by vector-quantize-pytorch, always in fp32.

Knows codebooks; knows nothing of images.
"""

import torch
from pydantic import Field
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

from clipgen_core.schema import Frozen


class QuantizerConfig(Frozen):
    """An EMA codebook (van den Oord et al. 2017, appendix A.1) with k-means start, the rotation trick
    (arXiv:2410.06424) and revival of dead codes."""

    codebook_size: int = Field(gt=1)
    code_dim: int = Field(gt=0)
    decay: float = Field(default=0.95, gt=0, lt=1)
    commitment: float = Field(default=0.25, ge=0)
    cosine: bool = False
    rotation_trick: bool = True
    revive_below: float = Field(default=0.5, ge=0)


class Quantizer(nn.Module):
    """Features to codes and back."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.codebook_size = config.codebook_size
        self.vq = VectorQuantize(
            dim=config.code_dim,
            codebook_size=config.codebook_size,
            decay=config.decay,
            commitment_weight=config.commitment,
            use_cosine_sim=config.cosine,
            rotation_trick=config.rotation_trick,
            threshold_ema_dead_code=config.revive_below,
            kmeans_init=True,
            accept_image_fmap=True,
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[n, d, h, w] to (quantized [n, d, h, w], codes [n, h, w] int64, commitment loss)."""
        with torch.autocast(features.device.type, enabled=False):
            quantized, codes, loss = self.vq(features.float())
        return quantized, codes, loss.sum()

    @property
    def codebook(self) -> Tensor:
        """The code vectors, [codebook_size, code_dim]."""
        vectors: Tensor = self.vq.codebook
        return vectors

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes [n, h, w] to features [n, d, h, w]."""
        features: Tensor = self.vq.get_output_from_indices(codes)
        return features


def usage_and_perplexity(counts: Tensor) -> tuple[float, float]:
    """Share of codes in use, and exp(entropy) of the codes' distribution, from counts [codebook]."""
    share = counts.double() / counts.sum().clamp(min=1)
    entropy = -(share * share.clamp(min=1e-12).log()).sum()
    return (counts > 0).double().mean().item(), entropy.exp().item()
