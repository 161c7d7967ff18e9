"""What `compile` compiles; by a backend that needs no C++ compiler."""

import functools
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from clipgen_core.stages import transformer
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker
from tests.conftest import of_order, tiny_transformer_config


class Metrics(NullTracker):
    def __init__(self) -> None:
        self.seen = dict[str, float]()

    def metrics(self, values: Any, step: int) -> None:
        self.seen |= values


@pytest.mark.slow
@pytest.mark.parametrize(("order", "recompute"), [("raster", True), ("any", False)])
def test_all_layers_share_one_graph_and_validation_has_none(
    order: str,
    recompute: bool,
    pipeline: Storage,
    storage: Storage,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    shards, curves = pipeline.current("tokens", "tests").path, list[list[float]]()
    for compiled in (False, True):
        config = of_order(order, tiny_transformer_config(6, precision="fp32", log_every=1, compile=compiled))
        model = config.model.model_copy(
            update={"layers": 9, "dropout": 0.0}
        )  # more than recompiles are allowed
        config = config.model_copy(update={"model": model, "recompute": recompute})
        tracker, out = Metrics(), Storage(f"{storage.root}/{compiled}")
        fitted = transformer.run(config, tokens=shards, out=out, tracker=tracker).fitted
        curves.append(
            [row[name] for row in fitted.history for name in ("loss", "validation_loss") if name in row]
        )
        assert tracker.seen["first_step_seconds"] > 0
        assert ("the transformer is compiled: its first step took" in capsys.readouterr().err) == compiled
    assert counters["stats"]["unique_graphs"] == 1
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
