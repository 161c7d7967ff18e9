"""Metrics of generated and reconstructed images. Knows images, codes and features, but runs no model."""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from clipgen_core.extras import needed_for
from clipgen_core.judging.distances import Frechet
from clipgen_core.models.quantizer import usage_and_perplexity

with needed_for("training and evaluation"):
    from torchmetrics.functional.image import structural_similarity_index_measure

BLURS = (1, 2, 4, 8)  # DALL-E's and CogView's FID-k


def inception_score(logits: Tensor) -> float:
    """The Inception score exp(E KL(p(y|x) || p(y))), in one split (Salimans et al. 2016, arXiv:1606.03498).

    Args:
        logits: Float [n, classes].

    Returns:
        The score, at least 1.
    """
    log_p = logits.double().log_softmax(dim=1)
    marginal = log_p.exp().mean(dim=0, keepdim=True).log()
    return float((log_p.exp() * (log_p - marginal)).sum(dim=1).mean().exp())


def blurred(images: list[Image.Image], radius: int) -> list[Image.Image]:
    """Blur images for FID-k, which ignores detail that a tokenizer cannot reconstruct (DALL-E,
    arXiv:2102.12092; CogView, arXiv:2105.13290).

    Args:
        images: RGB images.
        radius: Radius k of the Gaussian, in pixels.

    Returns:
        The blurred images.
    """
    return [image.filter(ImageFilter.GaussianBlur(radius)) for image in images]


def psnr(reconstructions: Tensor, images: Tensor) -> Tensor:
    """The peak signal-to-noise ratio of each reconstruction.

    Args:
        reconstructions: Float [n, 3, h, w], about in [-1, 1].
        images: The originals, float [n, 3, h, w] in [-1, 1].

    Returns:
        Decibels, float [n], at most about 106.
    """
    return 10 * torch.log10(4 / (reconstructions - images).square().mean((1, 2, 3)).clamp(min=1e-10))


class Interval(NamedTuple):
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2


def bootstrap(values: np.ndarray, resamples: int = 2000, seed: int = 0) -> Interval:
    """The mean of values and its 95 % confidence interval, by resampling with replacement.

    Args:
        values: Float [n].
        resamples: Number of resampled sets.
        seed: Seed of the resampling.

    Returns:
        The mean and the interval.
    """
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(resamples, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


class Reconstruction:
    """Collects the reconstruction metrics of a VQGAN, batch by batch.

    Args:
        codebook_size: Number of codes.
    """

    def __init__(self, codebook_size: int) -> None:
        self.counts = torch.zeros(codebook_size, dtype=torch.long)
        self.psnr: list[Tensor] = []
        self.ssim: list[Tensor] = []
        self.embeddings: list[tuple[Tensor, Tensor]] = []

    def add(
        self,
        images: Tensor,
        reconstructions: Tensor,
        codes: Tensor,
        embeddings: Tensor,
        reconstructed_embeddings: Tensor,
    ) -> None:
        """Add a batch.

        Args:
            images: Float [n, 3, h, w] in [-1, 1].
            reconstructions: Float [n, 3, h, w].
            codes: Codes of the images, int64 [n, g, g].
            embeddings: CLIP embeddings of the images, float [n, d].
            reconstructed_embeddings: CLIP embeddings of the reconstructions, float [n, d].
        """
        self.counts += codes.flatten().bincount(minlength=len(self.counts)).cpu()
        self.psnr.append(psnr(reconstructions, images).cpu())
        clamped = reconstructions.clamp(-1, 1)
        self.ssim.append(
            structural_similarity_index_measure(clamped, images, data_range=2.0, reduction="none").cpu()  # type: ignore[union-attr]
        )
        self.embeddings.append((embeddings.cpu(), reconstructed_embeddings.cpu()))

    def metrics(self) -> dict[str, float]:
        """PSNR in dB, SSIM, reconstruction FID in CLIP space, and usage and perplexity of the codebook."""
        usage, perplexity = usage_and_perplexity(self.counts)
        real, reconstructed = (torch.cat(part) for part in zip(*self.embeddings, strict=True))
        return {
            "psnr": torch.cat(self.psnr).mean().item(),
            "ssim": torch.cat([one.flatten() for one in self.ssim]).mean().item(),
            "rfid_clip": Frechet(real.float().numpy()).to(reconstructed.float().numpy()),
            "codebook_usage": usage,
            "codebook_perplexity": perplexity,
        }
