"""Distances between sets of images: KID, FID, CMMD, precision, recall, density and coverage.

Knows features, but neither images nor models. With features of CLIP, KID and FID are those in CLIP space
(Kynkaanniemi et al. 2022, arXiv:2203.06026), which are not comparable with those of Inception.

KID is unbiased at any number of images. FID and CMMD are biased: they are larger for fewer images, so compare
them only between sets of equal size, and with the distance of as many real images.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

Kernel = Callable[[np.ndarray, int], np.ndarray]  # of inner products and the width of the features
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
ROWS_AT_ONCE = 2048
FLOOR_DRAWS = 20
NORMAL_95 = 1.96  # standard errors on each side of a 95 % interval


class Estimate(NamedTuple):
    """A distance and its standard error."""

    value: float
    standard_error: float


def cubic(inner: np.ndarray, dim: int) -> np.ndarray:
    """The kernel of KID, (x y / d + 1)^3 (Binkowski et al. 2018, arXiv:1801.01401, section 4).

    Args:
        inner: Inner products of features, float64.
        dim: Width d of the features.

    Returns:
        The kernel of each pair.
    """
    return np.asarray((inner / dim + 1) ** 3)


def gaussian(inner: np.ndarray, dim: int) -> np.ndarray:
    """The kernel of CMMD, a Gaussian of width 10 (Jayasumana et al. 2024, arXiv:2401.09603, section 4).

    Args:
        inner: Inner products of features of length 1, float64.
        dim: Width of the features, which does not matter.

    Returns:
        The kernel of each pair.
    """
    return np.asarray(np.exp((inner - 1) / CMMD_SIGMA**2))


class Discrepancy:
    """The squared maximum mean discrepancy (MMD) to a reference set.

    Args:
        real: Features of the reference set, float [m, d], m >= 3.
        kernel: Compares two features.
        unbiased: Leave out the kernel of a feature with itself, so that two sets of one distribution have the
            discrepancy 0 in the mean. It may then be negative.
        scale: What the discrepancy is multiplied with.
    """

    def __init__(
        self, real: np.ndarray, kernel: Kernel, *, unbiased: bool = True, scale: float = 1.0
    ) -> None:
        self.kernel, self.unbiased, self.scale = kernel, unbiased, scale
        self.real = real.astype(np.float64)
        self.rows, self.own = self._within(self.real)

    def to(self, other: np.ndarray) -> Estimate:
        """The discrepancy of a set.

        Args:
            other: Its features, float [n, d], n >= 3.

        Returns:
            The discrepancy and its standard error by the jackknife over both sets.
        """
        other = other.astype(np.float64)
        (rows, own), (m, n) = self._within(other), (len(self.real), len(other))
        from_real, from_other = self._sums(self.real, other), self._sums(other, self.real)
        real, within, between = self.rows.sum(), rows.sum(), from_real.sum()
        value = self._squared(real, m, within, n, between)
        without = (
            self._squared(real - 2 * self.rows + self.own, m - 1, within, n, between - from_real),
            self._squared(real, m, within - 2 * rows + own, n - 1, between - from_other),
        )
        variance = sum((len(part) - 1) * np.var(part) for part in without)
        return Estimate(float(value), float(variance**0.5))

    def of_own(self, drawn: np.ndarray) -> float:
        """The discrepancy between some images of the reference set and all its others.

        Args:
            drawn: Positions in the reference set, int64 [n].

        Returns:
            The discrepancy.
        """
        inside = self._within(self.real[drawn])[0].sum()
        between = self.rows[drawn].sum() - inside
        rest, n = self.rows.sum() - 2 * between - inside, len(drawn)
        return float(self._squared(rest, len(self.real) - n, inside, n, between))

    def _squared(
        self, real: np.ndarray, m: int, within: np.ndarray, n: int, between: np.ndarray
    ) -> np.ndarray:
        """From the sums of the kernel within and between sets of m and n features."""
        less = 1 if self.unbiased else 0
        mean = real / (m * (m - less)) + within / (n * (n - less)) - 2 * between / (m * n)
        return self.scale * mean

    def _within(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The sum of each row over its own set [n], and what of it is the row with itself [n]."""
        own = self.kernel((features**2).sum(axis=1), features.shape[1])
        rows = self._sums(features, features)
        return (rows - own, np.zeros_like(own)) if self.unbiased else (rows, own)

    def _sums(self, of: np.ndarray, over: np.ndarray) -> np.ndarray:
        """The sum of the kernel of each row [n] with all rows of another set."""
        parts = (of[start : start + ROWS_AT_ONCE] for start in range(0, len(of), ROWS_AT_ONCE))
        return np.concatenate([self.kernel(part @ over.T, of.shape[1]).sum(axis=1) for part in parts])


def kid(real: np.ndarray) -> Discrepancy:
    """The kernel inception distance to a reference set, float [m, d] (Binkowski et al. 2018)."""
    return Discrepancy(real, cubic)


def cmmd(real: np.ndarray) -> Discrepancy:
    """The CLIP maximum mean discrepancy to a reference set, float [m, d], of length 1, times 1000.

    Biased, as in the paper's implementation, which keeps the kernel of a feature with itself.
    """
    return Discrepancy(real, gaussian, unbiased=False, scale=CMMD_SCALE)


class Frechet:
    """The Frechet distance between normal distributions that are fitted to two sets of features.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of their means and covariances (FID, arXiv:1706.08500).

    Args:
        real: Features of the reference set, float [m, d], m >= 2.
    """

    def __init__(self, real: np.ndarray) -> None:
        self.real = real.astype(np.float64)
        self.mean = self.real.mean(axis=0)
        covariance = np.cov(self.real, rowvar=False)
        values, directions = np.linalg.eigh(covariance)
        self.trace = float(np.trace(covariance))
        self.root = (directions * np.sqrt(values.clip(min=0))) @ directions.T

    def to(self, other: np.ndarray) -> float:
        """The distance of a set.

        Args:
            other: Its features, float [n, d], n >= 2.

        Returns:
            The distance, at least 0.
        """
        mean = other.mean(axis=0, dtype=np.float64)
        centred = (other - mean) / (len(other) - 1) ** 0.5  # C2 is its product with itself
        both = np.linalg.svd(self.root @ centred.T, compute_uv=False).sum()  # tr((C1 C2)^(1/2))
        distance = ((self.mean - mean) ** 2).sum() + self.trace + (centred**2).sum() - 2 * both
        return max(float(distance), 0.0)  # rounding may go below

    def of_own(self, drawn: np.ndarray) -> float:
        """The distance between some images of the reference set and all its others.

        Args:
            drawn: Positions in the reference set, int64 [n].

        Returns:
            The distance.
        """
        return Frechet(np.delete(self.real, drawn, axis=0)).to(self.real[drawn])


def floor(distance: Discrepancy | Frechet, n: int) -> Estimate:
    """The distance of `n` real images to the other images of a reference set: none can be expected below it.

    Args:
        distance: To the reference set, which holds at least 2 n images.
        n: How many images are drawn; this is repeated `FLOOR_DRAWS` times.

    Returns:
        The mean over the draws and their standard deviation, which is the standard error of one set.
    """
    rng = np.random.default_rng(0)
    total = len(distance.real)
    draws = [distance.of_own(rng.permutation(total)[:n]) for _ in range(FLOOR_DRAWS)]
    return Estimate(float(np.mean(draws)), float(np.std(draws, ddof=1)))


class Manifold:
    """The union of balls around the images of a reference set, each of which reaches to the image's k-th
    nearest neighbour.

    Args:
        real: Features of the reference set, float32 [m, d].
        k: Number of the neighbour that a ball reaches to.
    """

    def __init__(self, real: np.ndarray, k: int = 5) -> None:
        self.real, self.k, self.radius = real, k, _radius(real, k)

    def scores(self, other: np.ndarray) -> dict[str, float]:
        """Precision and recall (Kynkaanniemi et al. 2019, arXiv:1904.06991), density and coverage (Naeem et
        al. 2020, arXiv:2002.09797).

        Precision is the share of the other images in the manifold, density the mean number of balls that
        contain one of them, divided by k, and coverage the share of balls that contain any of them. Recall is
        precision with the sets exchanged. All depend on the sizes of the sets.

        Args:
            other: Features of the set to compare, float32 [n, d].

        Returns:
            The four scores by name.
        """
        between = _distances(self.real, other)
        inside = between < self.radius[:, None]
        return {
            "precision": float(inside.any(axis=0).mean()),
            "recall": float((between < _radius(other, self.k)[None]).any(axis=1).mean()),
            "density": float(inside.sum(axis=0).mean() / self.k),
            "coverage": float((between.min(axis=1) < self.radius).mean()),
        }


def _radius(features: np.ndarray, k: int) -> np.ndarray:
    """The distance of each row to its k-th nearest other row, or to the farthest if there are fewer."""
    k = min(k, len(features) - 1)
    parts = (features[start : start + ROWS_AT_ONCE] for start in range(0, len(features), ROWS_AT_ONCE))
    return np.concatenate([np.partition(_distances(part, features), k, axis=1)[:, k] for part in parts])


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances [n, m], computed without matrix products, which would round them."""
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(torch.from_numpy(a), torch.from_numpy(b), compute_mode=exact).numpy()
