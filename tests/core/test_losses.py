import math
from pathlib import Path

import pytest
import torch

from clipgen_core.errors import ClipgenError
from clipgen_core.losses import (
    ClipFeatureDistance,
    Lpips,
    adaptive_weight,
    code_cross_entropy,
    hinge_discriminator,
    hinge_generator,
)
from clipgen_core.models.clip import ClipEncoder


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


def test_clip_distance_is_zero_for_the_same_and_grows(clip_reference: str) -> None:
    distance = ClipFeatureDistance(ClipEncoder(clip_reference))
    pictures = torch.rand(2, 3, 32, 32)
    near = distance(pictures + 0.02 * torch.randn_like(pictures), pictures).item()
    far = distance(torch.rand(2, 3, 32, 32) - 1, pictures).item()
    assert distance(pictures, pictures).item() == pytest.approx(0, abs=1e-6)
    assert 0 < near < far


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
