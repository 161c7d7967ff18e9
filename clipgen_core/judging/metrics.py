"""Metrics of generated and reconstructed images. Knows images, codes and features, but runs no model.

Distances between sets are computed from features: with those of CLIP, the Frechet distance is the FID in CLIP
space (Kynkaanniemi et al. 2022, arXiv:2203.06026), which is not comparable with the FID of Inception.
"""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn

from clipgen_core.extras import needed_for
from clipgen_core.models.quantizer import usage_and_perplexity

with needed_for("training and evaluation"):
    from torchmetrics.functional.image import structural_similarity_index_measure
    from torchmetrics.image.fid import FrechetInceptionDistance

BLURS = (1, 2, 4, 8)  # DALL-E's and CogView's FID-k
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0


class PrecomputedFeatures(nn.Module):
    """The feature extractor for torchmetrics where features are computed already: it returns its input.

    Args:
        num_features: Width of the features.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        """Return the features."""
        return features


def frechet_distance(real: Tensor, other: Tensor) -> float:
    """The Frechet distance between normal distributions that are fitted to two sets of features.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of their means and covariances (FID, arXiv:1706.08500).

    Args:
        real: Features of the reference set, float [n, d], n >= 2.
        other: Features of the set to compare, float [m, d], m >= 2.

    Returns:
        The distance, at least 0.
    """
    metric = FrechetInceptionDistance(PrecomputedFeatures(real.shape[1])).to(real.device)
    metric.update(real, real=True)
    metric.update(other, real=False)
    return max(float(metric.compute()), 0.0)  # rounding may go below


def cmmd(real: np.ndarray, other: np.ndarray) -> float:
    """The CLIP maximum mean discrepancy (CMMD) of two sets of embeddings.

    1000 times the squared MMD with a Gaussian kernel of width 10 (Jayasumana et al. 2024, arXiv:2401.09603,
    section 4, whose implementation keeps the diagonal). Unlike the Frechet distance, it assumes no normal
    distribution and does not decrease with the number of images.

    Args:
        real: Embeddings of the reference set, float32 [n, d], of length 1.
        other: Embeddings of the set to compare, float32 [m, d], of length 1.

    Returns:
        The discrepancy, 0 for equal sets.
    """

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        square = 2 - 2 * (a.astype(np.float64) @ b.T)  # of unit vectors
        return float(np.exp(-square / (2 * CMMD_SIGMA**2)).mean())

    return CMMD_SCALE * (kernel(real, real) + kernel(other, other) - 2 * kernel(real, other))


def manifold_scores(real: np.ndarray, other: np.ndarray, k: int = 5) -> dict[str, float]:
    """Precision and recall (Kynkaanniemi et al. 2019, arXiv:1904.06991), density and coverage (Naeem et al.
    2020, arXiv:2002.09797).

    The manifold of the reference set is the union of balls around its images, each of which reaches to the
    image's k-th nearest neighbour. Precision is the share of the other images in it, density the mean number
    of balls that contain one of them, divided by k, and coverage the share of balls that contain any of them.
    Recall is precision with the sets exchanged.

    Args:
        real: Features of the reference set, float32 [n, d], n > k.
        other: Features of the set to compare, float32 [m, d], m > k.
        k: Number of the neighbour that a ball reaches to.

    Returns:
        The four scores by name.
    """
    radius_real, radius_other = _radius(real, k), _radius(other, k)
    between = _distances(real, other)
    inside = between < radius_real[:, None]
    return {
        "precision": float(inside.any(axis=0).mean()),
        "recall": float((between < radius_other[None]).any(axis=1).mean()),
        "density": float(inside.sum(axis=0).mean() / k),
        "coverage": float((between.min(axis=1) < radius_real).mean()),
    }


def _radius(features: np.ndarray, k: int) -> np.ndarray:
    """The distance of each row to its k-th nearest other row, or to the farthest if there are fewer."""
    nearest: np.ndarray = np.sort(_distances(features, features), axis=1)[:, min(k, len(features) - 1)]
    return nearest


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances [n, m], computed without matrix products, which would round them."""
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(torch.from_numpy(a), torch.from_numpy(b), compute_mode=exact).numpy()


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
            "rfid_clip": frechet_distance(real, reconstructed),
            "codebook_usage": usage,
            "codebook_perplexity": perplexity,
        }
