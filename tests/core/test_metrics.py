import numpy as np
import pytest
import scipy.linalg
import torch

from clipgen_core.metrics import Reconstruction, frechet_distance, half_width, psnr


def test_the_frechet_distance_is_that_of_its_formula() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((300, 6)) @ rng.standard_normal((6, 6)) + 1
    b = rng.standard_normal((200, 6))
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root)
    made = frechet_distance(torch.from_numpy(a), torch.from_numpy(b))
    assert made == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(a)) == pytest.approx(0, abs=1e-4)


def test_psnr_by_hand() -> None:
    pictures = torch.zeros(2, 3, 4, 4)
    made = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 2.0)])
    assert psnr(made, pictures).tolist() == pytest.approx([20.0, 0.0], abs=1e-4)


def test_reconstruction_gathers_over_batches() -> None:
    torch.manual_seed(0)
    seen, pictures = Reconstruction(codebook_size=4), torch.rand(8, 3, 32, 32) * 2 - 1
    embedding = torch.randn(8, 5)
    for part in (slice(0, 3), slice(3, 8)):
        batch = pictures[part]
        seen.add(batch, batch, torch.zeros(len(batch), 2, 2).long(), embedding[part], embedding[part])
    metrics = seen.metrics()
    assert metrics["psnr"] > 90 and metrics["ssim"] == pytest.approx(1)
    assert metrics["rfid_clip"] == pytest.approx(0, abs=1e-3)
    assert metrics["codebook_usage"] == 0.25 and metrics["codebook_perplexity"] == pytest.approx(1)


def test_the_bootstrap_interval_is_that_of_the_normal_law_for_many_values() -> None:
    values = np.random.default_rng(1).standard_normal(4000)
    assert half_width(values) == pytest.approx(1.96 / 4000**0.5, rel=0.1)
    assert half_width(np.ones(10)) == 0
