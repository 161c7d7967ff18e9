"""Vector quantization by the package vector-quantize-pytorch, always in fp32.

Knows codebooks; knows nothing of images.
"""

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ, SimVQ, VectorQuantize

from clipgen_core.models.ibq import IndexPropagation
from clipgen_core.settings.models import QuantizerConfig


class Quantizer(nn.Module):
    """Maps features to codes of a codebook and back; `config.kind` chooses the method."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook_size = config.codebook_size
        self.vq = _layer(config)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize features.

        Args:
            features: Float [n, d, h, w].

        Returns:
            The quantized features, float32 [n, d, h, w]; the codes, int64 [n, h, w]; and the commitment
            loss, a scalar that is 0 where the method has none.
        """
        with torch.autocast(features.device.type, enabled=False):
            quantized, codes, *loss = self.vq(features.float())
        return quantized, codes.long(), loss[0].sum() if loss else quantized.new_zeros(())

    @property
    def codebook(self) -> Tensor:
        """The code vectors, float32 [codebook_size, code_dim]."""
        device = next(chain(self.vq.buffers(), self.vq.parameters())).device
        codes = torch.arange(self.codebook_size, device=device)
        return self.lookup(codes.view(1, -1, 1)).squeeze(-1).squeeze(0).T

    def lookup(self, codes: Tensor) -> Tensor:
        """The features of codes: int64 [n, h, w] to float32 [n, d, h, w]."""
        learned = self.config.kind in ("ema", "cosine")
        vq: Any = self.vq
        features: Tensor = (vq.get_output_from_indices if learned else vq.indices_to_codes)(codes)
        return features


def _layer(config: QuantizerConfig) -> nn.Module:
    if config.kind == "fsq":
        return FSQ(list(config.levels), preserve_symmetry=True)
    if config.kind == "ibq":
        return IndexPropagation(config)
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
    """How much of a codebook is used.

    Args:
        counts: How often each code occurs, [codebook_size].

    Returns:
        The share of codes that occur, and the perplexity exp(entropy) of their distribution.
    """
    share = counts.double() / counts.sum().clamp(min=1)
    entropy = -(share * share.clamp(min=1e-12).log()).sum()
    return (counts > 0).double().mean().item(), entropy.exp().item()
