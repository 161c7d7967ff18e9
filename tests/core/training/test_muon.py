import copy

import pytest
import torch
from torch import nn

from clipgen_core.training import muon
from clipgen_core.training.muon import Muon

SETTINGS = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}


def trained(model: nn.Module, kind: type[torch.optim.Optimizer], steps: int = 3) -> torch.optim.Optimizer:
    """The optimizer of a model after some steps on fixed gradients."""
    generator = torch.Generator().manual_seed(0)
    optimizer = kind(model.parameters(), **SETTINGS)  # type: ignore[call-arg]
    for _ in range(steps):
        for weight in model.parameters():
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
    return optimizer


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 48, bias=False), nn.Linear(48, 16, bias=False))


def test_in_bf16_it_is_pytorchs(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "fast_dtype", lambda _: torch.bfloat16)
    other = copy.deepcopy(model)
    trained(model, Muon), trained(other, torch.optim.Muon)
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_in_fp32_it_differs_from_pytorchs_by_the_rounding_of_bf16(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "fast_dtype", lambda _: torch.float32)
    before, other = copy.deepcopy(model), copy.deepcopy(model)
    own, theirs = trained(model, Muon), trained(other, torch.optim.Muon)
    for start, one, two in zip(*(m.parameters() for m in (before, model, other)), strict=True):
        assert not torch.equal(one, two)
        assert (one - two).norm() < 0.03 * (one - start).norm()
    assert own.state_dict()["param_groups"] == theirs.state_dict()["param_groups"]
    theirs.load_state_dict(own.state_dict())  # a training may go on on another machine


@pytest.mark.parametrize("shape", [(8, 32), (32, 8), (16, 16)])
def test_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    given = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(muon.orthogonalized(given, (3.4445, -4.7750, 2.0315), 5, 1e-7))
    assert values.min() > 0.3 and values.max() < 1.3
    assert torch.equal(muon.orthogonalized(torch.zeros(shape), (3.4, -4.7, 2.0), 5, 1e-7), torch.zeros(shape))
