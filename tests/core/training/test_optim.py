import pytest
import torch
from torch import nn

from clipgen_core.training.optim import ExponentialAverage, adamw, set_learning_rate, warmup_cosine


def test_learning_rate_warms_up_peaks_and_decays() -> None:
    factors = [warmup_cosine(step, steps=100, warmup=10) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[100] == pytest.approx(0.02)
    assert factors[55] == pytest.approx(0.02 + 0.98 * 0.5, abs=1e-6)


def test_only_matrices_decay_and_the_rate_is_set_from_its_base() -> None:
    optimizer = adamw([nn.Linear(3, 2)], 0.1, weight_decay=0.5)
    assert [(len(g["params"]), g["weight_decay"]) for g in optimizer.param_groups] == [(1, 0.5), (1, 0.0)]
    for factor in (0.5, 0.25):
        set_learning_rate(optimizer, factor)
        assert {g["lr"] for g in optimizer.param_groups} == {0.1 * factor}


def test_average_follows_weights_and_copies_buffers() -> None:
    module = nn.BatchNorm1d(1)
    average = ExponentialAverage(module, decay=0.5)
    with torch.no_grad():
        module.weight.fill_(3.0)
    module.running_mean.fill_(7.0)  # type: ignore[union-attr]
    average.update(module, step=100)
    assert average.state["weight"].item() == pytest.approx(2.0)
    assert average.state["running_mean"].item() == 7.0
