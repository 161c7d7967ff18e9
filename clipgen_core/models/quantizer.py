"""Vector quantization, always in fp32; most methods are those of the package vector-quantize-pytorch.

Knows codebooks; knows nothing of images.
"""

from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ, SimVQ, VectorQuantize

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


class IndexPropagation(nn.Module):
    """Index backpropagation quantization (IBQ, arXiv:2412.02692), without its entropy loss.

    The code of a feature is the one of the largest inner product. The gradient passes through the softmax of
    all inner products, so that it reaches every code. The loss is |q - z|^2 + |sg(c) - z|^2
    + commitment |c - sg(z)|^2 for the feature z, its code c, and q, which is c with that gradient.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.codebook_size, config.code_dim)
        self.commitment = config.commitment

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize features.

        Args:
            features: Float [n, d, h, w].

        Returns:
            The quantized features, [n, d, h, w]; the codes, int64 [n, h, w]; and the loss, a scalar.
        """
        table = self.embedding.weight
        logits = torch.einsum("ndhw,kd->nhwk", features, table)
        codes = logits.argmax(dim=-1)
        chosen = self.indices_to_codes(codes)
        if not self.training:
            return chosen, codes, features.new_zeros(())
        soft = torch.einsum("nhwk,kd->ndhw", logits.softmax(dim=-1), table.detach())
        quantized = chosen + soft - soft.detach()
        to_features, to_codes = F.mse_loss(chosen.detach(), features), F.mse_loss(chosen, features.detach())
        return quantized, codes, F.mse_loss(quantized, features) + to_features + self.commitment * to_codes

    def indices_to_codes(self, codes: Tensor) -> Tensor:
        """The features of codes: int64 [n, h, w] to float32 [n, d, h, w]."""
        features: Tensor = self.embedding(codes)
        return features.movedim(-1, 1)


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
