"""How good pictures are. Knows pictures, codes and embeddings; runs no model.

Distances between sets are taken in the space of the features given: with CLIP's, the Frechet distance is
the FID of CLIP space (Kynkaanniemi et al. 2022, arXiv:2203.06026), not comparable with Inception's FID.
"""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.fid import FrechetInceptionDistance

from clipgen_core.models.quantizer import usage_and_perplexity

BLURS = (1, 2, 4, 8)  # DALL-E's and CogView's FID-k
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0


class Given(nn.Module):
    """Stands where torchmetrics wants a network: the features are computed already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(real: Tensor, other: Tensor) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two sets of features [n, d], [m, d], n, m >= 2."""
    metric = FrechetInceptionDistance(Given(real.shape[1])).to(real.device)
    metric.update(real, real=True)
    metric.update(other, real=False)
    return max(float(metric.compute()), 0.0)  # rounding may go below


def cmmd(real: np.ndarray, other: np.ndarray) -> float:
    """CLIP maximum mean discrepancy of two sets of embeddings of length 1, [n, d] and [m, d].

    1000 times the squared MMD with a Gaussian kernel of width 10 (Jayasumana et al. 2024, arXiv:2401.09603,
    section 4, whose implementation keeps the diagonal). Unlike the Frechet distance it assumes no normal
    distribution and does not fall with the number of pictures.
    """

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        square = 2 - 2 * (a.astype(np.float64) @ b.T)  # of unit vectors
        return float(np.exp(-square / (2 * CMMD_SIGMA**2)).mean())

    return CMMD_SCALE * (kernel(real, real) + kernel(other, other) - 2 * kernel(real, other))


def manifold_scores(real: np.ndarray, other: np.ndarray, k: int = 5) -> dict[str, float]:
    """Precision and recall (Kynkaanniemi et al. 2019, arXiv:1904.06991), density and coverage (Naeem et
    al. 2020, arXiv:2002.09797) of features other [m, d] against real [n, d], n > k.

    The real pictures' manifold is the union of balls that reach each one's k-th neighbour: precision is the
    share of others inside it, density how many balls they lie in (over k), coverage the share of balls that
    hold one. Recall is precision with the roles exchanged.
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
    """The distance of each row to its k-th nearest other row (to the farthest where there are fewer)."""
    nearest: np.ndarray = np.sort(_distances(features, features), axis=1)[:, min(k, len(features) - 1)]
    return nearest


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances [n, m], without the rounding of the formula by products."""
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(torch.from_numpy(a), torch.from_numpy(b), compute_mode=exact).numpy()


def inception_score(logits: Tensor) -> float:
    """exp(E KL(p(y|x) || p(y))) of logits [n, classes], in one split (Salimans et al. 2016,
    arXiv:1606.03498)."""
    log_p = logits.double().log_softmax(dim=1)
    marginal = log_p.exp().mean(dim=0, keepdim=True).log()
    return float((log_p.exp() * (log_p - marginal)).sum(dim=1).mean().exp())


def blurred(pictures: list[Image.Image], radius: int) -> list[Image.Image]:
    """Gaussian blur of `radius` pixels: the k of FID-k, which forgives what a tokenizer cannot show
    (DALL-E, arXiv:2102.12092; CogView, arXiv:2105.13290)."""
    return [picture.filter(ImageFilter.GaussianBlur(radius)) for picture in pictures]


def psnr(made: Tensor, pictures: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each picture [n, 3, h, w] in [-1, 1]: [n]."""
    return 10 * torch.log10(4 / (made - pictures).square().mean((1, 2, 3)).clamp(min=1e-10))


class Interval(NamedTuple):
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def bootstrap(values: np.ndarray, resamples: int = 2000, seed: int = 0) -> Interval:
    """The mean of values [n], resampled with replacement."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(resamples, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


class Reconstruction:
    """Figures of a tokenizer, gathered batch by batch."""

    def __init__(self, codebook_size: int) -> None:
        self.counts = torch.zeros(codebook_size, dtype=torch.long)
        self.psnr: list[Tensor] = []
        self.ssim: list[Tensor] = []
        self.embedded: list[tuple[Tensor, Tensor]] = []

    def add(
        self, pictures: Tensor, made: Tensor, codes: Tensor, embedding: Tensor, made_embedding: Tensor
    ) -> None:
        """Pictures and reconstructions [n, 3, h, w] in [-1, 1], codes, and CLIP's view of both [n, d]."""
        self.counts += codes.flatten().bincount(minlength=len(self.counts)).cpu()
        self.psnr.append(psnr(made, pictures).cpu())
        shown = made.clamp(-1, 1)
        self.ssim.append(
            structural_similarity_index_measure(shown, pictures, data_range=2.0, reduction="none").cpu()  # type: ignore[union-attr]
        )
        self.embedded.append((embedding.cpu(), made_embedding.cpu()))

    def metrics(self) -> dict[str, float]:
        usage, perplexity = usage_and_perplexity(self.counts)
        real, made = (torch.cat(part) for part in zip(*self.embedded, strict=True))
        return {
            "psnr": torch.cat(self.psnr).mean().item(),
            "ssim": torch.cat([one.flatten() for one in self.ssim]).mean().item(),
            "rfid_clip": frechet_distance(real, made),
            "codebook_usage": usage,
            "codebook_perplexity": perplexity,
        }
