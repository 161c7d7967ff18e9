import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipgen_core.errors import ClipgenError
from clipgen_core.models.discriminator import PatchDiscriminator
from clipgen_core.models.vqgan import Vqgan
from clipgen_core.settings.models import QuantizerConfig, VqganConfig

QUANTIZER = QuantizerConfig(codebook_size=16, code_dim=8)


def config(image_size: int = 32, levels: int = 2, patch: int = 2) -> VqganConfig:
    return VqganConfig(
        image_size=image_size, channels=(32,) * levels, blocks=1, patch=patch, quantizer=QUANTIZER
    )


def start(model: Vqgan, images: torch.Tensor) -> None:
    """One training pass, by which a codebook of running means starts."""
    model.train()(images)
    ((features, codes),) = model.quantizer.passes
    model.quantizer.learn(features, codes, seed=0)


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 3), st.sampled_from([1, 2, 4]), st.integers(1, 2))
def test_shapes_follow_the_downsampling_factor(levels: int, patch: int, grid: int) -> None:
    shape = config(patch * 2 ** (levels - 1) * grid, levels, patch)
    model = Vqgan(shape).eval()
    images = torch.rand(2, 3, shape.image_size, shape.image_size) * 2 - 1
    codes = model.encode(images)
    assert codes.shape == (2, grid, grid) == (2, shape.grid, shape.grid)
    assert model.decode(codes).shape == images.shape


def test_decoding_codes_is_what_forward_reconstructs() -> None:
    torch.manual_seed(0)
    model = Vqgan(config())
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    start(model, images)
    reconstructed, codes, _ = model.eval()(images)
    assert torch.allclose(model.decode(codes), reconstructed, atol=1e-5)


def test_gradients_reach_the_encoder_through_the_codes() -> None:
    model = Vqgan(config())
    images = torch.rand(4, 3, 32, 32)
    start(model, images)
    reconstructed, _, commitment = model(images)
    (reconstructed.square().mean() + commitment).backward()
    first = model.encoder[1].weight
    assert isinstance(first, torch.nn.Parameter) and first.grad is not None
    assert first.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "quantizer",
    [
        QuantizerConfig(kind="cosine", codebook_size=16, code_dim=8),
        QuantizerConfig(kind="simvq", codebook_size=16, code_dim=8),
        QuantizerConfig(kind="ibq", codebook_size=16, code_dim=8),
        QuantizerConfig(kind="fsq", codebook_size=60, code_dim=3, levels=(5, 4, 3)),
    ],
    ids=lambda config: config.kind,
)
def test_every_kind_of_quantizer_learns_and_gives_its_codes_back(quantizer: QuantizerConfig) -> None:
    torch.manual_seed(0)
    model = Vqgan(config().model_copy(update={"quantizer": quantizer})).train()
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    start(model, images)
    reconstructed, _, commitment = model(images)
    (reconstructed.square().mean() + commitment).backward()
    first = model.encoder[1].weight
    assert isinstance(first, torch.nn.Parameter) and first.grad is not None
    assert first.grad.abs().sum() > 0
    reconstructed, codes, _ = model.eval()(images)
    assert codes.min() >= 0 and codes.max() < quantizer.codebook_size
    assert torch.allclose(model.decode(codes), reconstructed, atol=1e-4)
    table = model.quantizer.codebook
    assert table.shape == (quantizer.codebook_size, quantizer.code_dim)
    assert torch.allclose(table[codes[0, 0, 0]], model.quantizer.lookup(codes)[0, :, 0, 0], atol=1e-5)


def test_levels_that_do_not_make_the_codebook_are_refused() -> None:
    with pytest.raises(ClipgenError, match=r"fsq levels \(5, 4\) do not make codebook_size 16"):
        QuantizerConfig(kind="fsq", codebook_size=16, code_dim=2, levels=(5, 4))
    with pytest.raises(ClipgenError, match="levels belong to fsq, not to ema"):
        QuantizerConfig(codebook_size=16, code_dim=2, levels=(4, 4))


def test_an_indivisible_size_fails_before_any_work() -> None:
    with pytest.raises(ClipgenError, match=r"image_size 30 .* downsampling factor 4"):
        config(30)
    with pytest.raises(ClipgenError, match="multiples of 32"):
        VqganConfig(image_size=32, channels=(20,), quantizer=QUANTIZER)


def test_the_discriminator_judges_patches_of_each_image_alone() -> None:
    judge = PatchDiscriminator(16, 2)
    images = torch.rand(3, 3, 32, 32)
    logits = judge(images)
    assert logits.shape[:2] == (3, 1) and logits.shape[2] > 1
    assert torch.allclose(logits[1:2], judge(images[1:2]), atol=1e-5)
