"""The gap between text and image embeddings, and ways across it.

CLIP puts a prompt and its picture in the same space but not in the same place; a model trained on
image embeddings and given text embeddings loses half of its quality (unCLIP, arXiv:2204.06125,
section 5.1). Ways across: noise in training, set by the cosine between the noisy and the clean
embedding; each modality's mean taken off (C3, arXiv:2401.08567); noise shaped like what parts
texts from the pictures they retrieve. The statistics are buffers, so they travel with the weights.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipgen_core.settings.models import GapConfig


class Gap(nn.Module):
    """What the transformer is told of embeddings. All embeddings are float [..., d], of length 1."""

    image_mean: Tensor
    text_mean: Tensor
    residual: Tensor

    def __init__(self, config: GapConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("image_mean", torch.zeros(dim))
        self.register_buffer("text_mean", torch.zeros(dim))
        self.register_buffer("residual", torch.eye(dim))

    def measure(self, images: Iterable[np.ndarray], texts: np.ndarray) -> None:
        """Fill the statistics from embeddings of pictures, in parts [n, d], and of texts [m, d], unpaired.

        residual: the square root of the covariance of (text - its nearest image), means taken off.
        """
        total, count = np.zeros(texts.shape[1]), 0
        nearest, best = np.zeros_like(texts), np.full(len(texts), -np.inf)
        for part in images:
            total, count = total + part.sum(axis=0, dtype=np.float64), count + len(part)
            cosine = texts @ part.T
            row = cosine.argmax(axis=1)
            highest = cosine[np.arange(len(texts)), row]
            nearest = np.where((highest > best)[:, None], part[row], nearest)
            best = np.maximum(highest, best)
        image_mean = (total / count).astype(np.float32)
        self.image_mean.copy_(torch.from_numpy(image_mean))
        self.text_mean.copy_(torch.from_numpy(texts.mean(axis=0)))
        apart = (texts - texts.mean(axis=0)) - (nearest - image_mean)
        covariance = torch.from_numpy(np.cov(apart, rowvar=False)).double()
        values, vectors = torch.linalg.eigh(covariance)
        self.residual.copy_((vectors * values.clamp(min=0).sqrt()) @ vectors.T)

    def image(self, embedding: Tensor) -> Tensor:
        """An image embedding as the transformer is given it."""
        return F.normalize(embedding - self.image_mean, dim=-1) if self.config.centred else embedding

    def text(self, embedding: Tensor) -> Tensor:
        """A text embedding in its place."""
        return F.normalize(embedding - self.text_mean, dim=-1) if self.config.centred else embedding

    def shifted(self, embedding: Tensor) -> Tensor:
        """A text embedding moved by the difference of the means: where its picture would be if the gap
        were one constant vector (Liang et al. 2022, arXiv:2203.02053)."""
        return self.image(F.normalize(embedding - self.text_mean + self.image_mean, dim=-1))

    def noisy(self, embedding: Tensor, noise: Tensor) -> Tensor:
        """The embedding turned towards `noise` (standard normal, same shape) until its cosine with the
        clean one is `config.cosine`; unchanged without noise."""
        if self.config.noise == "none":
            return embedding
        if self.config.noise == "residual":
            noise = noise @ self.residual
        across = noise - (noise * embedding).sum(-1, keepdim=True) * embedding
        cosine = self.config.cosine
        return cosine * embedding + (1 - cosine**2) ** 0.5 * F.normalize(across, dim=-1)
