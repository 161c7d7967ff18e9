import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from torchmetrics.image.inception import InceptionScore

from clipgen_core.judging.metrics import (
    PrecomputedFeatures,
    Reconstruction,
    blurred,
    bootstrap,
    cmmd,
    frechet_distance,
    inception_score,
    manifold_scores,
    psnr,
)


def test_the_frechet_distance_is_that_of_its_formula() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((300, 6)) @ rng.standard_normal((6, 6)) + 1
    b = rng.standard_normal((200, 6))
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root)
    distance = frechet_distance(torch.from_numpy(a), torch.from_numpy(b))
    assert distance == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(a)) == pytest.approx(0, abs=1e-4)


def unit(rows: int, seed: int, shift: float = 0.0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, 7)) + shift
    unit: np.ndarray = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
    return unit


def test_cmmd_is_the_sum_over_all_pairs() -> None:
    a, b = unit(9, 0), unit(6, 1, shift=1.0)

    def mean(first: np.ndarray, second: np.ndarray) -> float:
        pairs = [np.exp(-((x - y) ** 2).sum() / 200) for x in first for y in second]
        return float(np.mean(pairs))

    assert cmmd(a, b) == pytest.approx(1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b)), abs=1e-3)
    assert cmmd(a, a) == pytest.approx(0, abs=1e-9) and cmmd(a, b) > cmmd(a, unit(6, 1))


def test_precision_recall_density_and_coverage_by_counting() -> None:
    real, other, k = unit(20, 0), unit(15, 1, shift=0.4), 3

    def radius(rows: np.ndarray) -> list[float]:
        return [sorted(float(np.linalg.norm(x - y)) for y in rows)[k] for x in rows]

    real_balls, other_balls = radius(real), radius(other)
    held = [[np.linalg.norm(y - x) < r for x, r in zip(real, real_balls, strict=True)] for y in other]
    back = [[np.linalg.norm(x - y) < r for y, r in zip(other, other_balls, strict=True)] for x in real]
    metrics = manifold_scores(real, other, k)
    assert metrics["precision"] == pytest.approx(np.mean([any(row) for row in held]))
    assert metrics["recall"] == pytest.approx(np.mean([any(row) for row in back]))
    assert metrics["density"] == pytest.approx(np.mean([sum(row) for row in held]) / k)
    assert metrics["coverage"] == pytest.approx(np.mean([any(column) for column in zip(*held, strict=True)]))
    same = manifold_scores(real, real, k)
    assert same["precision"] == same["recall"] == same["coverage"] == 1
    far = manifold_scores(real, real + 100, k)
    assert far["precision"] == far["recall"] == far["density"] == far["coverage"] == 0


def test_the_inception_score_is_torchmetrics_of_one_split() -> None:
    logits = torch.randn(40, 11, generator=torch.Generator().manual_seed(0)) * 2
    reference = InceptionScore(PrecomputedFeatures(11), splits=1)
    reference.update(logits)
    assert inception_score(logits) == pytest.approx(float(reference.compute()[0]), rel=1e-4)
    assert inception_score(torch.eye(10) * 100) == pytest.approx(10)
    assert inception_score(torch.zeros(10, 4)) == pytest.approx(1)


def test_blur_spreads_a_point_and_keeps_the_mean() -> None:
    point = Image.new("RGB", (33, 33))
    point.putpixel((16, 16), (255, 255, 255))
    (soft,) = blurred([point], 2)
    values = np.asarray(soft, dtype=float)[:, :, 0]
    assert values.max() < 20 and values[16, 16] == values.max() and values[16, 12] > 0
    flat = Image.new("RGB", (8, 8), (10, 20, 30))
    assert blurred([flat], 4)[0].tobytes() == flat.tobytes()


def test_psnr_by_hand() -> None:
    images = torch.zeros(2, 3, 4, 4)
    reconstructions = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 2.0)])
    assert psnr(reconstructions, images).tolist() == pytest.approx([20.0, 0.0], abs=1e-4)


def test_reconstruction_gathers_over_batches() -> None:
    torch.manual_seed(0)
    metric, images = Reconstruction(codebook_size=4), torch.rand(8, 3, 32, 32) * 2 - 1
    embedding = torch.randn(8, 5)
    for part in (slice(0, 3), slice(3, 8)):
        batch = images[part]
        metric.add(batch, batch, torch.zeros(len(batch), 2, 2).long(), embedding[part], embedding[part])
    metrics = metric.metrics()
    assert metrics["psnr"] > 90 and metrics["ssim"] == pytest.approx(1)
    assert metrics["rfid_clip"] == pytest.approx(0, abs=1e-3)
    assert metrics["codebook_usage"] == 0.25 and metrics["codebook_perplexity"] == pytest.approx(1)


def test_the_bootstrap_interval_is_that_of_the_normal_law_for_many_values() -> None:
    values = np.random.default_rng(1).standard_normal(4000)
    interval = bootstrap(values)
    assert interval.half_width == pytest.approx(1.96 / 4000**0.5, rel=0.1)
    assert interval.mean == pytest.approx(values.mean()) and interval.low < interval.mean < interval.high
    assert bootstrap(np.ones(10)).half_width == 0
