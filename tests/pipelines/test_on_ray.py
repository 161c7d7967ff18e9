"""How a training on Ray's workers ends: with Ray Train itself, and with a training that takes no time."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from clipgen_core.errors import ClipgenError, Interrupted
from clipgen_core.training.interrupt import stop_signals
from pipelines import on_ray
from pipelines.config import TrainingConfig

pytestmark = pytest.mark.slow


def trained(root: str, stage: str, way: str) -> None:
    """Instead of `clipgen_core.train.train`: notes that it began, and ends in one of several ways."""
    began = len(list(Path(root).glob("began-*")))
    Path(root, f"began-{began}").touch()
    if way == "diverges":
        raise ClipgenError("the loss is nan at step 3")
    if way == "is killed" or (way == "is killed once" and began == 0):
        os._exit(1)
    if way == "is stopped":
        with stop_signals() as request:
            until = time.monotonic() + 120
            while not request.stop_requested():
                assert time.monotonic() < until
                time.sleep(0.1)
        raise Interrupted("stopped and saved")


@pytest.fixture(scope="module")
def ray_here(only_ray: None) -> Iterator[None]:
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture
def train(ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(on_ray, "train", trained)

    def start(way: str, restarts: int = 1) -> int:
        """Train on one worker; how often it began."""
        arguments = {"root": str(tmp_path), "stage": "vqgan", "way": way}
        config = TrainingConfig(workers_on="ray", restarts=restarts)
        try:
            on_ray.train_on_ray(arguments, config, "sqlite:///none.db")
        finally:
            start.began = len(list(tmp_path.glob("began-*")))  # type: ignore[attr-defined]
        return start.began  # type: ignore[attr-defined,no-any-return]

    return start


def test_an_error_that_would_occur_again_is_not_tried_again(train: Any) -> None:
    with pytest.raises(dg.Failure, match="training the vqgan on Ray failed: the loss is nan at step 3$"):
        train("diverges")
    assert train.began == 1


def test_a_lost_worker_is_replaced_as_often_as_the_config_says(train: Any) -> None:
    assert train("is killed once") == 2


def test_workers_that_are_always_lost_end_the_training(train: Any) -> None:
    with pytest.raises(dg.Failure, match="on Ray failed: workers were lost 2 times"):
        train("is killed")
    assert train.began == 2


def test_ctrl_c_requests_the_workers_to_stop(train: Any, tmp_path: Path) -> None:
    def interrupt() -> None:
        until = time.monotonic() + 120
        while not (tmp_path / "began-0").exists() and time.monotonic() < until:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Interrupted, match="stopped and saved"):
        train("is stopped")
    assert train.began == 1
