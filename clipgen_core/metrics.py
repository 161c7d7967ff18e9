"""How good pictures are. Knows pictures, codes and embeddings; runs no model.

Frechet distances are taken in the space of the embeddings given: with CLIP's they are the FID of
CLIP space (Kynkaanniemi et al. 2022, arXiv:2203.06026), not comparable with Inception's FID.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.fid import FrechetInceptionDistance

from clipgen_core.models.quantizer import usage_and_perplexity


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
    return float(metric.compute())


def psnr(made: Tensor, pictures: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each picture [n, 3, h, w] in [-1, 1]: [n]."""
    return 10 * torch.log10(4 / (made - pictures).square().mean((1, 2, 3)).clamp(min=1e-10))


def half_width(values: np.ndarray, resamples: int = 2000, seed: int = 0) -> float:
    """Half the width of the 95 % bootstrap interval of the mean of values [n]."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(resamples, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(high - low) / 2


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
