import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.image.inception import InceptionScore

from clipgen_core.judging.metrics import (
    Reconstruction,
    blurred,
    bootstrap,
    inception_score,
    psnr,
)


def test_the_inception_score_is_torchmetrics_of_one_split() -> None:
    logits = torch.randn(40, 11, generator=torch.Generator().manual_seed(0)) * 2
    reference = InceptionScore(torch.nn.Identity(), splits=1)
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
