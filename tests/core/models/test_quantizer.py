"""Codebooks of running means: as the package that they replace where that is right, and where it was not."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from clipgen_core.models.quantizer import Quantizer, usage_and_perplexity
from clipgen_core.settings.models import QuantizerConfig


def quantizer(size: int, dim: int, **settings: Any) -> Quantizer:
    torch.manual_seed(0)
    return Quantizer(QuantizerConfig(codebook_size=size, code_dim=dim, **settings)).train()


def step(model: Quantizer, *passes: Tensor, seed: int = 0) -> dict[str, float]:
    """One optimizer step on features [n, d, h, w], one tensor a pass."""
    for features in passes:
        model(features)
    features, codes = (torch.cat(rows) for rows in zip(*model.passes, strict=True))
    return model.learn(features, codes, seed)


def imported(model: Quantizer, vectors: Tensor) -> Quantizer:
    """The state that the importers write for a codebook that was trained by gradients."""
    state = {
        "initted": torch.tensor([True]),
        "cluster_size": torch.ones(1, len(vectors)),
        "embed_avg": vectors.unsqueeze(0),
        "embed": vectors.unsqueeze(0).clone(),
    }
    model.load_state_dict({f"vq._codebook.{name}": value for name, value in state.items()})
    return model


@pytest.mark.parametrize("rotation_trick", [True, False], ids=["rotation", "straight"])
@pytest.mark.parametrize("kind", ["ema", "cosine"])
def test_codes_loss_gradients_and_updates_are_those_of_the_package(kind: str, rotation_trick: bool) -> None:
    ours = quantizer(32, 8, kind=kind, rotation_trick=rotation_trick, replace_below=0.0)
    step(ours, torch.randn(4, 8, 8, 8))
    theirs = VectorQuantize(
        8,
        32,
        decay=ours.config.decay,
        commitment_weight=ours.config.commitment,
        use_cosine_sim=kind == "cosine",
        rotation_trick=rotation_trick,
        kmeans_init=True,
        accept_image_fmap=True,
    ).train()
    theirs.load_state_dict(ours.vq.state_dict())
    target = torch.randn(4, 8, 8, 8)
    for _ in range(30):
        features = [torch.randn(4, 8, 8, 8).requires_grad_()]
        features.append(features[0].detach().clone().requires_grad_())
        results = [model(x) for model, x in zip((ours, theirs), features, strict=True)]
        for quantized, _, loss in results:
            ((quantized - target).square().mean() + loss).backward()
        step(ours)
        (quantized, codes, loss), (their_quantized, their_codes, their_loss) = results
        assert torch.equal(codes, their_codes)
        assert torch.allclose(quantized, their_quantized, atol=1e-4)
        assert torch.allclose(loss, their_loss, rtol=1e-4)
        gradient, theirs_too = (x.grad for x in features)
        assert gradient is not None and theirs_too is not None
        assert torch.allclose(gradient, theirs_too, atol=1e-6)
        assert torch.allclose(ours.codebook, theirs.codebook, atol=1e-4)
    assert torch.equal(ours.eval()(target)[1], theirs.eval()(target)[1])
    assert torch.allclose(ours(target)[0], theirs(target)[0], atol=1e-4)


def test_k_means_starts_the_codes_as_well_as_the_package() -> None:
    centres = 3 * torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    features = (centres[torch.randint(64, (1024,))] + 0.3 * torch.randn(1024, 8)).T.reshape(1, 8, 32, 32)
    ours = quantizer(64, 8)
    step(ours, features)
    theirs = VectorQuantize(8, 64, kmeans_init=True, accept_image_fmap=True).eval()
    errors = [F.mse_loss(model(features)[0], features).item() for model in (ours.eval(), theirs)]
    assert errors[0] < 1.2 * errors[1]


@pytest.mark.parametrize("kind", ["ema", "cosine"])
def test_passes_of_a_step_learn_as_one_batch(kind: str) -> None:
    whole, parts = (quantizer(64, 8, kind=kind) for _ in range(2))
    figures = []
    for seed in range(40):
        features = torch.randn(8, 8, 2, 2)  # half a feature for each code, so that some are replaced
        figures.append(step(whole, features, seed=seed))
        assert step(parts, *features.split(2), seed=seed) == figures[-1]
    assert sum(one["codes_replaced"] for one in figures) > 0
    assert torch.allclose(whole.codebook, parts.codebook, atol=1e-4)


def test_a_codebook_larger_than_a_batch_is_not_replaced_at_every_step() -> None:
    model = quantizer(1024, 8)  # with 256 features in a step, a code has 0.25 on average
    replaced = [step(model, torch.randn(4, 8, 8, 8), seed=seed)["codes_replaced"] for seed in range(200)]
    assert sum(replaced[100:]) / 100 < 0.01
    features = torch.randn(64, 8, 8, 8)
    usage, _ = usage_and_perplexity(model.eval()(features)[1].flatten().bincount(minlength=1024))
    assert usage > 0.8


def test_codes_far_from_all_features_are_replaced() -> None:
    far = torch.cat([torch.randn(32, 8), 50 + torch.randn(32, 8)])
    model = imported(quantizer(64, 8), far)
    replaced = [step(model, torch.randn(4, 8, 4, 4), seed=seed)["codes_replaced"] for seed in range(100)]
    assert sum(replaced) >= 0.5  # after the steps in which their count has fallen to an eighth
    assert sum(replaced[:30]) == 0
    assert model.codebook.abs().max() < 10
    assert sum(replaced[60:]) < 0.1


@pytest.mark.parametrize("kind", ["ema", "cosine"])
def test_unused_codes_of_an_imported_codebook_stay_where_they_are(kind: str) -> None:
    torch.manual_seed(0)
    vectors = F.normalize(torch.randn(64, 8), dim=1)
    near = vectors[:32].repeat(4, 1).view(8, 4, 4, 8).permute(0, 3, 1, 2)
    model = imported(quantizer(64, 8, kind=kind, decay=0.9, replace_below=0.0), vectors)
    for seed in range(500):
        step(model, near + 0.05 * torch.randn(near.shape) + 0.02, seed=seed)
    assert torch.equal(model.codebook[32:], vectors[32:])
    goal = F.normalize(vectors[:32] + 0.02, dim=1) if kind == "cosine" else vectors[:32] + 0.02
    assert (model.codebook[:32] - goal).abs().max() < 0.05
    assert (model.codebook[:32] - vectors[:32]).abs().max() > 0.01


def test_training_moves_codes_to_the_data() -> None:
    model = quantizer(4, 2)
    corners = torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]])
    data = corners.repeat(16, 1).T.reshape(1, 2, 8, 8)
    for seed in range(20):
        step(model, data, seed=seed)
    quantized, codes, _ = model.eval()(data)
    assert (quantized - data).abs().max() < 0.05
    assert codes.unique().numel() == 4
    assert torch.allclose(model.lookup(codes), quantized, atol=1e-5)


def test_a_record_of_version_0_1_loads_without_its_absolute_count() -> None:
    earlier = {"kind": "ema", "codebook_size": 16, "code_dim": 8}
    assert QuantizerConfig.model_validate(earlier | {"revive_below": 0.5}) == QuantizerConfig(
        codebook_size=16, code_dim=8
    )
    assert QuantizerConfig.model_validate(earlier | {"revive_below": 0.0}).replace_below == 0


def test_usage_and_perplexity_by_hand() -> None:
    usage, perplexity = usage_and_perplexity(torch.tensor([5, 5, 0, 0]))
    assert (usage, perplexity) == (0.5, pytest.approx(2.0))
    assert usage_and_perplexity(torch.tensor([9, 0, 0, 0])) == (0.25, pytest.approx(1.0))
