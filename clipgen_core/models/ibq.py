"""The quantizer of IBQ (arXiv:2412.02692), whose codes learn by gradients.

Knows a codebook; knows nothing of images.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipgen_core.settings.models import QuantizerConfig


class IndexPropagation(nn.Module):
    """Index backpropagation quantization, without its entropy loss.

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
