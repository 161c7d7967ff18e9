"""The gap between text and image embeddings, and ways to close it.

CLIP embeds a prompt and its image in one space, but texts and images lie in different regions of it. A
model that was trained on image embeddings loses half of its quality when it is given text embeddings
(unCLIP, arXiv:2204.06125, section 5.1). Remedies: noise in training, set by the cosine between the noisy
and the clean embedding; subtracting the mean of each modality (C3, arXiv:2401.08567); noise with the
covariance of the differences between texts and the images nearest to them. The statistics are buffers,
so they are saved with the weights.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipgen_core.settings.models import GapConfig


class Gap(nn.Module):
    """Prepares CLIP embeddings for the transformer. All embeddings are float [..., d], of length 1.

    Args:
        config: Which remedies are applied.
        dim: Width d of the embeddings.
    """

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
        """Compute the statistics from embeddings of images and of texts, which need not be paired.

        `residual` becomes the square root of the covariance of the difference between each text and the
        image nearest to it, both centred.

        Args:
            images: Parts of the image embeddings, each float32 [n, d].
            texts: Text embeddings, float32 [m, d].
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
        difference = (texts - texts.mean(axis=0)) - (nearest - image_mean)
        covariance = torch.from_numpy(np.cov(difference, rowvar=False)).double()
        values, vectors = torch.linalg.eigh(covariance)
        self.residual.copy_((vectors * values.clamp(min=0).sqrt()) @ vectors.T)

    def image(self, embedding: Tensor) -> Tensor:
        """Prepare an image embedding: centred if `config.centred`, else unchanged."""
        return F.normalize(embedding - self.image_mean, dim=-1) if self.config.centred else embedding

    def text(self, embedding: Tensor) -> Tensor:
        """Prepare a text embedding that takes the place of an image embedding."""
        return F.normalize(embedding - self.text_mean, dim=-1) if self.config.centred else embedding

    def shifted(self, embedding: Tensor) -> Tensor:
        """Prepare a text embedding that is moved by the difference between the means of both modalities.

        This would give the embedding of the text's image if the gap were one constant vector (Liang et
        al. 2022, arXiv:2203.02053).
        """
        return self.image(F.normalize(embedding - self.text_mean + self.image_mean, dim=-1))

    def noisy(self, embedding: Tensor, noise: Tensor) -> Tensor:
        """Rotate the embedding towards `noise` until its cosine with the clean one is `config.cosine`.

        Args:
            embedding: Prepared embeddings, float [n, d].
            noise: Standard normal numbers, float [n, d].

        Returns:
            Embeddings of length 1, float [n, d]; unchanged if `config.noise` is "none".
        """
        if self.config.noise == "none":
            return embedding
        if self.config.noise == "residual":
            noise = noise @ self.residual
        orthogonal = noise - (noise * embedding).sum(-1, keepdim=True) * embedding
        cosine = self.config.cosine
        return cosine * embedding + (1 - cosine**2) ** 0.5 * F.normalize(orthogonal, dim=-1)
