import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from clipgen_core.models.gap import Gap
from clipgen_core.settings.models import GapConfig

DIM = 12


def unit(rows: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed)), dim=-1)


def measured(config: GapConfig) -> Gap:
    """A gap between images around one direction and texts around another, anisotropic in between."""
    images = F.normalize(unit(400, 0) + 2 * torch.eye(DIM)[0], dim=-1)
    stretch = torch.linspace(2.0, 0.1, DIM)
    texts = F.normalize(images[:200] + 0.5 * unit(200, 1) * stretch - 1.5 * torch.eye(DIM)[1], dim=-1)
    gap = Gap(config, DIM)
    gap.measure([images.numpy()[:3], images.numpy()[3:]], texts.numpy())
    return gap


@settings(max_examples=20, deadline=None)
@given(st.floats(0.05, 0.95), st.sampled_from(["isotropic", "residual"]), st.integers(0, 99))
def test_noise_leaves_exactly_the_cosine_asked_for(cosine: float, noise: str, seed: int) -> None:
    gap = measured(GapConfig(noise=noise, cosine=cosine))  # type: ignore[arg-type]
    clean = unit(20, seed)
    noisy = gap.noisy(clean, torch.randn(20, DIM))
    assert torch.allclose(noisy.norm(dim=-1), torch.ones(20), atol=1e-5)
    assert torch.allclose((noisy * clean).sum(-1), torch.full((20,), cosine), atol=1e-5)


def test_without_noise_nothing_moves() -> None:
    assert torch.equal(measured(GapConfig()).noisy(unit(3, 0), torch.randn(3, DIM)), unit(3, 0))


def test_residual_noise_has_the_covariance_of_texts_and_their_nearest_images() -> None:
    gap = measured(GapConfig(noise="residual", cosine=0.5))
    covariance = gap.residual @ gap.residual.T
    drawn = torch.randn(20000, DIM) @ gap.residual
    assert torch.allclose(torch.cov(drawn.T), covariance, atol=0.02)
    spread = drawn.std(dim=0)
    assert spread.max() > 1.4 * spread.min()


def test_means_are_those_of_the_embeddings_given() -> None:
    images, texts = unit(50, 3).numpy(), unit(30, 4).numpy()
    gap = Gap(GapConfig(centred=True), DIM)
    gap.measure([images], texts)
    assert np.allclose(gap.image_mean, images.mean(0), atol=1e-6)
    centred = gap.image(torch.from_numpy(images))
    expected = images - images.mean(0)
    assert np.allclose(centred, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)
    text = gap.text(torch.from_numpy(texts))
    expected = texts - texts.mean(0)
    assert np.allclose(text, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)


def test_shifting_brings_texts_to_the_images() -> None:
    gap = measured(GapConfig())
    text = F.normalize(gap.text_mean, dim=0)
    image = F.normalize(gap.image_mean, dim=0)
    assert float(gap.shifted(text) @ image) > 0.9 > float(text @ image)


def test_statistics_travel_in_the_state() -> None:
    gap, other = measured(GapConfig()), Gap(GapConfig(), DIM)
    other.load_state_dict(gap.state_dict())
    assert torch.equal(other.residual, gap.residual) and other.residual.abs().sum() > 0
    with pytest.raises(ValueError, match="less than or equal to 1|less than 1"):
        GapConfig(cosine=1.0)
