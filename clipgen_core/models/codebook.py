"""A codebook whose vectors are running means of the features nearest to them (VQ-VAE, arXiv:1711.00937,
appendix A.1), always in fp32.

Knows features and codes as rows; knows nothing of images, losses or processes. Searching for codes changes
nothing: `learn` takes all rows of an optimizer step at once, however many passes and processes computed them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipgen_core.settings.models import QuantizerConfig

ITERATIONS = 10  # of k-means
ROWS = 8192  # features that are compared with all codes at once


class Codebook(nn.Module):
    """Vectors e_i with running counts N_i and running sums m_i of their features, e_i = m_i / N_i.

    The state has the names and shapes of the package vector-quantize-pytorch, which wrote the checkpoints of
    version 0.1.

    Args:
        config: Size, dimension, decay of the running means, and which codes are replaced. Codes of the kind
            `cosine` have length 1.
    """

    initted: Tensor
    cluster_size: Tensor
    embed_avg: Tensor
    embed: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.size, self.decay = config.codebook_size, config.decay
        self.cosine, self.replace_below = config.kind == "cosine", config.replace_below
        self._started = False
        vectors = self.on_sphere(torch.randn(1, config.codebook_size, config.code_dim))
        self.register_buffer("initted", torch.tensor(False))
        self.register_buffer("cluster_size", torch.ones(1, config.codebook_size))
        self.register_buffer("embed_avg", vectors.clone())
        self.register_buffer("embed", vectors)

    @property
    def vectors(self) -> Tensor:
        """The code vectors e, float32 [codebook_size, code_dim]."""
        return self.embed[0]

    @property
    def started(self) -> bool:
        """Whether the codes have features. The device is asked until it says so for the first time."""
        self._started = self._started or bool(self.initted)
        return self._started

    def on_sphere(self, vectors: Tensor) -> Tensor:
        """Vectors [..., code_dim] at length 1 where the codebook compares directions alone."""
        return F.normalize(vectors, dim=-1) if self.cosine else vectors

    def nearest(self, features: Tensor) -> Tensor:
        """The nearest code of each feature: float32 [n, code_dim] to int64 [n]."""
        return nearest(features, self.vectors)

    @torch.no_grad()
    def learn(self, features: Tensor, codes: Tensor, seed: int) -> Tensor:
        """Update the codes by all features of an optimizer step; the first features start them by k-means.

        N_i <- d N_i + (1 - d) n_i and m_i <- d m_i + (1 - d) s_i, with n_i features of sum s_i at code i and
        the decay d. A code without a feature stays exactly where it is, until it is replaced.

        Args:
            features: Float32 [n, code_dim], of all passes and processes.
            codes: The nearest code of each, int64 [n].
            seed: Of the random draws.

        Returns:
            The number of codes that were replaced, on the device.
        """
        draws = torch.Generator().manual_seed(seed)
        if not self.started:
            self._start(features, draws)
            return codes.new_zeros(())
        counts, sums = totals(features, codes, self.size)
        self.cluster_size[0].lerp_(counts, 1 - self.decay)
        self.embed_avg[0].lerp_(sums, 1 - self.decay)
        used = counts > 0
        means = self.embed_avg[0] / self.cluster_size[0].unsqueeze(1)
        self.embed[0] = torch.where(used.unsqueeze(1), self.on_sphere(means), self.vectors)
        return self._replace(features, draws)

    def _start(self, features: Tensor, draws: torch.Generator) -> None:
        """k-means; a code that gets no feature stays where it was drawn."""
        rows = torch.randperm(len(features), generator=draws).to(features.device)
        vectors = features[rows.repeat(-(-self.size // len(rows)))[: self.size]]
        for _ in range(ITERATIONS):
            counts, sums = totals(features, nearest(features, vectors), self.size)
            means = self.on_sphere(sums / counts.clamp(min=1).unsqueeze(1))
            vectors = torch.where(counts.unsqueeze(1) > 0, means, vectors)
        self.embed[0], self.cluster_size[0] = vectors, counts
        self.embed_avg[0] = vectors * counts.unsqueeze(1)
        self.initted.fill_(True)

    def _replace(self, features: Tensor, draws: torch.Generator) -> Tensor:
        """Put codes of which N_i is below a share of its mean on random features, no two on the same.

        They begin with the mean count, so that they have time to win features of their own. The CPU never
        waits for their number: every code is given a feature, and only the rare ones take it.
        """
        mean_count = len(features) / self.size
        order, rows = (
            torch.randperm(n, generator=draws).to(features.device) for n in (self.size, len(features))
        )
        rare = self.cluster_size[0] < self.replace_below * mean_count
        rank = torch.empty_like(order).scatter_(0, order, rare[order].cumsum(0) - 1)  # among the rare ones
        rare = (rare & (rank < len(rows))).unsqueeze(1)
        placed = features[rows[rank.clamp(0, len(rows) - 1)]]
        self.embed[0] = torch.where(rare, placed, self.vectors)
        self.cluster_size[0] = torch.where(rare[:, 0], mean_count, self.cluster_size[0])
        self.embed_avg[0] = torch.where(rare, placed * mean_count, self.embed_avg[0])
        return rare.sum()


def nearest(features: Tensor, vectors: Tensor) -> Tensor:
    """The nearest vector of each feature, argmin |x - e|^2 = argmax x e - |e|^2 / 2.

    Args:
        features: Float32 [n, d].
        vectors: Float32 [k, d].

    Returns:
        int64 [n].
    """
    offset = vectors.square().sum(1) / 2
    return torch.cat([(part @ vectors.T - offset).argmax(1) for part in features.split(ROWS)])


def totals(features: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Number and sum of the features of each code, the same in every run and process (no atomic adds).

    Args:
        features: Float32 [n, d].
        codes: The code of each, int64 [n].
        size: Number of codes k.

    Returns:
        The numbers, float32 [k], and the sums, float32 [k, d].
    """
    counts = occurrences(codes, size)
    ordered = features[codes.argsort(stable=True)]
    sums = torch.segment_reduce(ordered, "sum", lengths=counts, axis=0, initial=0, unsafe=True)  # or it waits
    return counts.float(), sums


def occurrences(codes: Tensor, size: int) -> Tensor:
    """How often each code occurs, without waiting for the device as `bincount` does.

    Args:
        codes: int64 [n].
        size: Number of codes k.

    Returns:
        int64 [k].
    """
    return codes.new_zeros(size).scatter_add_(0, codes, torch.ones_like(codes))
