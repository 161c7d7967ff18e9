import numpy as np
import pytest
import scipy.linalg
import torch
from torchmetrics.image.kid import poly_mmd

from clipgen_core.judging.distances import Frechet, Manifold, cmmd, floor, kid


def normal(rows: int, seed: int, shift: float = 0.0, dim: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, dim)) + shift


def unit(rows: int, seed: int, shift: float = 0.0) -> np.ndarray:
    values = normal(rows, seed, shift, 7)
    unit: np.ndarray = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
    return unit


def test_the_frechet_distance_is_that_of_its_formula() -> None:
    a, b = normal(300, 0) @ normal(6, 1) + 1, normal(200, 2)
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root)
    assert Frechet(a).to(b) == pytest.approx(expected, rel=1e-6)
    assert Frechet(a).to(a) == pytest.approx(0, abs=1e-6)
    assert Frechet(a).to(b[:4]) > 0  # fewer images than dimensions
    drawn = np.array([5, 0, 7, 9, 1, 2, 3, 11])
    assert Frechet(a).of_own(drawn) == Frechet(np.delete(a, drawn, axis=0)).to(a[drawn])


def test_kid_is_torchmetrics_and_the_sum_over_all_pairs() -> None:
    a, b = normal(40, 0), normal(40, 1, shift=0.3)
    assert kid(a).to(b).value == pytest.approx(float(poly_mmd(torch.from_numpy(a), torch.from_numpy(b))))
    few = b[:9]

    def mean(first: np.ndarray, second: np.ndarray) -> float:
        return float(np.mean([(x @ y / 6 + 1) ** 3 for x in first for y in second if x is not y]))

    rows, other = list(a), list(few)
    expected = mean(rows, rows) + mean(other, other) - 2 * mean(rows, other)  # type: ignore[arg-type]
    assert kid(a).to(few).value == pytest.approx(expected)
    drawn = np.array([3, 0, 39, 17, 20])
    assert kid(a).of_own(drawn) == pytest.approx(kid(np.delete(a, drawn, axis=0)).to(a[drawn]).value)
    assert cmmd(a).of_own(drawn) == pytest.approx(cmmd(np.delete(a, drawn, axis=0)).to(a[drawn]).value)


def test_kid_of_two_halves_of_one_set_is_zero_in_the_mean_at_any_size_but_fid_is_not() -> None:
    """The floor of FID grows as there are fewer images: it is a bias, and no difference between the sets."""
    real = normal(600, 0, dim=30)
    for n in (10, 40, 200):
        draws = [kid(real).of_own(np.random.default_rng(i).permutation(600)[:n]) for i in range(60)]
        assert abs(np.mean(draws)) < 3 * np.std(draws) / 60**0.5
    few, many = floor(Frechet(real), 40), floor(Frechet(real), 200)
    assert few.value > 2 * many.value > 0
    assert few.value - 1.96 * few.standard_error > 0


def test_the_standard_error_of_kid_is_its_spread_over_new_sets() -> None:
    real = normal(200, 0)
    estimates = [kid(normal(200, 2 * i + 1)).to(normal(60, 2 * i + 2, shift=0.5)) for i in range(60)]
    spread = np.std([one.value for one in estimates], ddof=1)
    assert np.mean([one.standard_error for one in estimates]) == pytest.approx(spread, rel=0.3)
    assert kid(real).to(real).standard_error < spread


def test_the_floor_says_what_can_be_told_from_real_images() -> None:
    real = normal(400, 0)
    noise = floor(kid(real), 50)
    other, same = kid(real).to(normal(50, 3, shift=0.8)), kid(real).to(normal(50, 4))
    assert other.value - 1.96 * other.standard_error > noise.value + 1.96 * noise.standard_error
    assert abs(same.value - noise.value) < 1.96 * (same.standard_error + noise.standard_error)


def test_cmmd_is_the_sum_over_all_pairs() -> None:
    a, b = unit(9, 0), unit(6, 1, shift=1.0)

    def mean(first: np.ndarray, second: np.ndarray) -> float:
        pairs = [np.exp(-((x - y) ** 2).sum() / 200) for x in first for y in second]
        return float(np.mean(pairs))

    expected = 1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))
    assert cmmd(a).to(b).value == pytest.approx(expected, abs=1e-3)
    assert cmmd(a).to(a).value == pytest.approx(0, abs=1e-9)
    assert cmmd(a).to(b).value > cmmd(a).to(unit(6, 1)).value


def test_precision_recall_density_and_coverage_by_counting() -> None:
    real, other, k = unit(20, 0), unit(15, 1, shift=0.4), 3

    def radius(rows: np.ndarray) -> list[float]:
        return [sorted(float(np.linalg.norm(x - y)) for y in rows)[k] for x in rows]

    real_balls, other_balls = radius(real), radius(other)
    held = [[np.linalg.norm(y - x) < r for x, r in zip(real, real_balls, strict=True)] for y in other]
    back = [[np.linalg.norm(x - y) < r for y, r in zip(other, other_balls, strict=True)] for x in real]
    metrics = Manifold(real, k).scores(other)
    assert metrics["precision"] == pytest.approx(np.mean([any(row) for row in held]))
    assert metrics["recall"] == pytest.approx(np.mean([any(row) for row in back]))
    assert metrics["density"] == pytest.approx(np.mean([sum(row) for row in held]) / k)
    assert metrics["coverage"] == pytest.approx(np.mean([any(column) for column in zip(*held, strict=True)]))
    same = Manifold(real, k).scores(real)
    assert same["precision"] == same["recall"] == same["coverage"] == 1
    far = Manifold(real, k).scores(real + 100)
    assert far["precision"] == far["recall"] == far["density"] == far["coverage"] == 0
