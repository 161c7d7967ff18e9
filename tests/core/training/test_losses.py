import math
from pathlib import Path

import pytest
import torch

from clipgen_core.errors import ClipgenError
from clipgen_core.generation.load import load_vqgan
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.storage import Storage
from clipgen_core.training.losses import (
    ClipFeatureDistance,
    Lpips,
    adaptive_weight,
    code_cross_entropy,
    embedding_reconstruction,
    gradient_penalty,
    hinge_discriminator,
    hinge_generator,
    lecam,
)


def test_hinge_losses_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.5])
    assert hinge_discriminator(real, fake).item() == pytest.approx(0.5 * (0.25 + 0.75))
    assert hinge_generator(fake).item() == pytest.approx(0.75)


def test_adaptive_weight_is_the_ratio_of_gradients() -> None:
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    ratio = adaptive_weight((3 * weight).sum(), (0.5 * weight).sum(), weight)
    assert ratio.item() == pytest.approx(6.0, rel=1e-3)
    assert not ratio.requires_grad


def test_code_cross_entropy_by_hand() -> None:
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]]))
    loss = code_cross_entropy(logits, torch.tensor([[0, 2]]))
    assert loss.item() == pytest.approx(-(math.log(0.5) + math.log(0.8)) / 2)


def test_code_cross_entropy_of_parts_adds_up_to_that_of_the_whole() -> None:
    logits, codes = torch.randn(4, 5, 3), torch.randint(0, 3, (4, 5))
    codes[0, :4], codes[2, 1] = -1, -1
    parts = [code_cross_entropy(logits[i : i + 2], codes[i : i + 2], 0.75) for i in (0, 2)]
    whole = code_cross_entropy(logits, codes, 0.75)
    assert whole.item() == pytest.approx(sum(parts).item() / 2)  # type: ignore[union-attr]
    assert whole.item() == pytest.approx(code_cross_entropy(logits, codes).item())  # 15 of 20 count


def test_clip_distance_is_zero_for_the_same_and_grows(clip_reference: str) -> None:
    distance = ClipFeatureDistance(ClipEncoder(clip_reference))
    images = torch.rand(2, 3, 32, 32)
    near = distance(images + 0.02 * torch.randn_like(images), images).item()
    far = distance(torch.rand(2, 3, 32, 32) - 1, images).item()
    assert distance(images, images).item() == pytest.approx(0, abs=1e-6)
    assert 0 < near < far


def test_more_blocks_than_the_clip_has_are_refused(clip_reference: str) -> None:
    clip = ClipEncoder(clip_reference)
    assert ClipFeatureDistance(clip, clip.blocks).blocks == 2
    with pytest.raises(
        ClipgenError,
        match="perceptual_blocks is 3, and .* only 2: set vqgan.perceptual_blocks to 2, or",
    ):
        ClipFeatureDistance(clip, 3)


def test_lecam_by_hand() -> None:
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([-1.0, 0.0])
    anchors = torch.tensor([0.5, 2.0])  # of real and of fake logits
    assert lecam(real, fake, anchors).item() == pytest.approx((0 + 1) / 2 + (1.5**2 + 0.5**2) / 2)


def test_the_gradient_penalty_of_a_linear_judge_is_its_squared_slope() -> None:
    images = torch.randn(2, 3, 4, 4, requires_grad=True)
    penalty = gradient_penalty(0.5 * images.sum((1, 2, 3)), images)
    assert penalty.item() == pytest.approx(0.25 * 48)


def test_the_embedding_loss_is_minus_the_log_of_the_raised_cosine(
    pipeline: Storage, clip_reference: str
) -> None:
    vqgan = load_vqgan(pipeline.current("vqgan", "tests").path)
    clip = ClipEncoder(clip_reference)
    codes = torch.randint(16, (3, 16))
    seen = clip.embed(vqgan.decode(codes.view(3, 4, 4)).clamp(-1, 1))
    sure = (20.0 * torch.nn.functional.one_hot(codes, 16)).requires_grad_()
    assert embedding_reconstruction(sure, seen, vqgan, clip).item() == pytest.approx(0, abs=1e-4)
    wanted = torch.nn.functional.normalize(torch.randn(3, clip.dim), dim=-1)
    loss = embedding_reconstruction(sure, wanted, vqgan, clip)
    assert loss.item() == pytest.approx(-((1 + (seen * wanted).sum(-1)) / 2).log().mean().item(), abs=1e-3)
    unsure = torch.randn(3, 16, 16, requires_grad=True)
    embedding_reconstruction(unsure, wanted, vqgan, clip).backward()
    assert unsure.grad is not None and unsure.grad.abs().sum() > 0


def test_lpips_reads_local_weights_only(tmp_path: Path) -> None:
    with pytest.raises(ClipgenError, match="download torchvision's vgg16"):
        Lpips(str(tmp_path / "none.pth"))
    from torchvision.models import vgg16

    torch.manual_seed(0)
    torch.save(vgg16().state_dict(), tmp_path / "vgg16.pth")
    metric = Lpips(str(tmp_path / "vgg16.pth"))
    a, b = torch.rand(2, 1, 3, 64, 64) * 2 - 1
    assert metric(a, a).item() == pytest.approx(0, abs=1e-6)
    assert metric(a, b).item() > 0
