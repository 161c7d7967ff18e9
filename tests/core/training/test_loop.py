import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from clipgen_core import device, filesystem
from clipgen_core.data.order import WHOLE, Share
from clipgen_core.data.prefetch import prefetch
from clipgen_core.errors import ClipgenError, Interrupted
from clipgen_core.settings.training import TrainConfig
from clipgen_core.tracking import NullTracker, Tracker
from clipgen_core.training import checkpoint, interrupt
from clipgen_core.training.checkpoint import Checkpoint, Checkpoints, Saved
from clipgen_core.training.loop import Fitted, fit
from clipgen_core.training.provenance import Provenance
from clipgen_core.training.task import Validation


class LineTask:
    """y = 2 x, learned by a linear layer with dropout, so that every random draw matters."""

    def __init__(self, nan_at: int | None = None, pause: float = 0.0) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.extras: dict[str, nn.Module] = {"critic": nn.Linear(1, 1)}
        self.nan_at, self.pause, self.seen = nan_at, pause, list[int]()

    def optimizers(self) -> dict[str, list[torch.optim.Optimizer]]:
        modules = {"line": self.model, "critic": self.extras["critic"]}
        return {name: [torch.optim.AdamW(m.parameters(), lr=0.01)] for name, m in modules.items()}

    def batch(self, step: int, share: Share = WHOLE) -> tuple[int, Tensor]:
        return step, share.take(torch.randn(16, 4, generator=torch.Generator().manual_seed(step)))

    def losses(
        self, batch: tuple[int, Tensor], progress: float
    ) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
        step, x = batch
        self.seen.append(step)
        time.sleep(self.pause)
        made = self.model(x)
        loss = (made - 2 * x.sum(1, keepdim=True)).square().mean()
        yield "line", loss * (float("nan") if step == self.nan_at else 1.0), {"progress": progress}
        yield "critic", self.extras["critic"](made.detach()).square().mean(), {}

    def after_step(self, step: int) -> dict[str, Any]:
        return {}

    def validate(self) -> Validation:
        assert not self.model.training
        loss = float(next(self.model.parameters()).sum())
        return Validation({"validation_loss": loss}, {"line": Image.new("L", (4, 4), self.seen[-1] + 1)})


def config(steps: int = 20, **fields: Any) -> TrainConfig:
    fields = {"checkpoint_every": 5, "ema_decay": 0.9, "log_every": 1} | fields
    return TrainConfig(steps=steps, batch_size=16, learning_rate=0.01, precision="fp32", **fields)


class Curve(NullTracker):
    """The losses that a tracker was given, by step."""

    def __init__(self) -> None:
        self.losses = dict[int, float]()

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        if "loss" in values:
            self.losses[step] = values["loss"]


def train(folder: Path, task: LineTask, train: TrainConfig, tracker: Tracker | None = None) -> Fitted:
    checkpoints = Checkpoints(url=str(folder), provenance=Provenance(config={"a": 1}), keep=2)
    return fit(lambda: task, train, checkpoints=checkpoints, tracker=tracker or NullTracker(), label="line")


def finished(folder: Path, config: TrainConfig) -> Fitted:
    """The training again, as the process that started its workers asks for it."""
    checkpoints = Checkpoints(url=str(folder), provenance=Provenance(config={"a": 1}), keep=2)
    return fit(lambda: LineTask(), config, checkpoints=checkpoints, tracker=NullTracker(), label="line")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_the_loss_falls_and_the_last_two_and_the_best_checkpoint_stay(tmp_path: Path) -> None:
    fitted = train(tmp_path, LineTask(), config(200, checkpoint_every=40))
    losses = [row["loss"] for row in fitted.history if "loss" in row]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    scores = {int(r["step"]): r["validation_loss"] for r in fitted.history if "validation_loss" in r}
    stay = {160, 200, min(scores, key=lambda step: scores[step])}
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step-{step:08d}" for step in sorted(stay)]


def test_the_average_is_saved_and_used_in_validation(tmp_path: Path) -> None:
    task = LineTask()
    fitted = train(tmp_path, task, config())
    averaged = Checkpoint(fitted.checkpoint).weights()
    raw = Checkpoint(fitted.checkpoint).resume()["model"]
    assert not same(averaged, raw)
    assert same(raw, task.model.state_dict())
    assert fitted.metrics["validation_loss"] == pytest.approx(float(averaged["0.weight"].sum()), rel=1e-4)


def test_an_interrupted_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", LineTask(), config())

    class Stopped(LineTask):
        def losses(self, batch: Any, progress: float) -> Any:
            if batch[0] == 13:
                raise SystemExit
            return super().losses(batch, progress)

    with pytest.raises(SystemExit):
        train(tmp_path / "parts", Stopped(), config())
    resumed, curve = LineTask(), Curve()
    parts = train(tmp_path / "parts", resumed, config(), curve)
    assert resumed.seen == list(range(10, 20))
    assert curve.losses == {int(r["step"]): r["loss"] for r in whole.history if "loss" in r}
    assert same(Checkpoint(whole.checkpoint).weights(), Checkpoint(parts.checkpoint).weights())
    one, other = Checkpoint(whole.checkpoint).resume(), Checkpoint(parts.checkpoint).resume()
    assert same(one["model"], other["model"])
    assert same(one["extras"]["critic"], other["extras"]["critic"])
    assert [r["loss"] for r in whole.history if "loss" in r] == [
        r["loss"] for r in parts.history if "loss" in r
    ]


def test_a_finished_run_is_not_trained_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = train(tmp_path, LineTask(), config())
    assert "the training of" not in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LineTask, "__init__", lambda self: pytest.fail("a finished training needs no task"))
        again = finished(tmp_path, config())
    said = f"the training of the line is finished (20 steps): checkpoint {first.checkpoint}"
    assert capsys.readouterr().err.splitlines() == [said]
    assert again.checkpoint == first.checkpoint
    assert again.metrics == first.metrics
    assert again.images["line"].getpixel((0, 0)) == first.images["line"].getpixel((0, 0)) == 20


def test_a_nan_stops_and_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ClipgenError, match=r"the loss is nan at step 13.*step-00000010"):
        train(tmp_path, LineTask(nan_at=12), config())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000005", "step-00000010"]


def test_a_half_written_checkpoint_is_ignored(tmp_path: Path) -> None:
    train(tmp_path, LineTask(), config(10))
    half = tmp_path / "step-00000099"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    checkpoints = Checkpoints(url=str(tmp_path), provenance=Provenance(config={}))
    assert checkpoints.latest() == Checkpoint(f"{tmp_path}/step-00000010")


def _train_slowly(folder: Path) -> None:
    train(folder, LineTask(pause=0.02), config(40, checkpoint_every=2))


def test_sigkill_at_any_moment_leaves_a_run_that_can_go_on(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", LineTask(), config(40, checkpoint_every=2))
    for attempt in range(4):
        worker = multiprocessing.get_context("fork").Process(
            target=_train_slowly, args=(tmp_path / "killed",)
        )
        worker.start()
        time.sleep(0.25 + 0.07 * attempt)
        assert worker.pid
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        for name in filesystem.list_folder(str(tmp_path / "killed")):
            if name.startswith("step-"):
                Checkpoint(str(tmp_path / "killed" / name)).weights()
    killed = train(tmp_path / "killed", LineTask(), config(40, checkpoint_every=2))
    assert same(Checkpoint(whole.checkpoint).weights(), Checkpoint(killed.checkpoint).weights())
    assert Checkpoint(killed.checkpoint).state.step == 40


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_next_run_goes_on_from_there(
    tmp_path: Path, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(tmp_path / "whole", LineTask(), config(30, checkpoint_every=30))

    class Asked(LineTask):
        def losses(self, batch: Any, progress: float) -> Any:
            if batch[0] == 12:
                os.kill(os.getpid(), number)
                os.kill(os.getpid(), number)  # launchers forward what the terminal has sent already
            return super().losses(batch, progress)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=r"asked to stop at step 13 and saved .*step-00000013"):
        train(tmp_path / "parts", Asked(), config(30, checkpoint_every=30))
    assert signal.getsignal(number) is before
    resumed = LineTask()
    capsys.readouterr()
    parts = train(tmp_path / "parts", resumed, config(30, checkpoint_every=30))
    assert "the training of the line goes on at step 13 of 30\n" in capsys.readouterr().err
    assert resumed.seen == list(range(13, 30))
    assert same(Checkpoint(whole.checkpoint).weights(), Checkpoint(parts.checkpoint).weights())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_a_second_later_ends_at_once_though_a_checkpoint_is_being_written(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Asked(LineTask):
        def losses(self, batch: Any, progress: float) -> Any:
            if batch[0] == 12:
                os.kill(os.getpid(), number)
            return super().losses(batch, progress)

    monkeypatch.setattr(interrupt, "IMPATIENT_AFTER", 0.5)
    begun, may_end = threading.Event(), threading.Event()

    def slow(*_: Any) -> None:
        begun.set()
        may_end.wait(60)

    def again() -> None:
        begun.wait(60)
        time.sleep(0.6)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(checkpoint, "_write", slow)
    impatient = threading.Thread(target=again)
    impatient.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Asked(), config(30, checkpoint_every=30))
    assert time.monotonic() - began < 30
    may_end.set()
    impatient.join()


def test_a_nan_between_two_looks_is_never_saved(tmp_path: Path) -> None:
    with pytest.raises(ClipgenError, match=r"the loss is nan at step 13.*step-00000010"):
        train(tmp_path, LineTask(nan_at=12), config(log_every=100))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000005", "step-00000010"]


@pytest.mark.parametrize("what", ["model", "critic"])
def test_a_gradient_that_is_not_finite_at_a_checkpoint_is_never_saved(tmp_path: Path, what: str) -> None:
    class Exploding(LineTask):
        def losses(self, batch: Any, progress: float) -> Any:
            module = self.model if what == "model" else self.extras["critic"]
            if batch[0] == 9:
                for parameter in module.parameters():
                    parameter.register_hook(lambda gradient: gradient * float("inf"))
            return super().losses(batch, progress)

    with pytest.raises(
        ClipgenError, match=r"the (line|critic) grad norm is (inf|nan) at step 10.*step-00000005"
    ):
        train(tmp_path, Exploding(), config())
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000005"]
    fitted = train(tmp_path, LineTask(), config())
    assert fitted.checkpoint.endswith("step-00000020")


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    class Broken(LineTask):
        def validate(self) -> Validation:
            with torch.no_grad():
                self.extras["critic"].weight.fill_(float("nan"))
            return super().validate()

    with pytest.raises(
        ClipgenError, match=r"the weights weight are not finite at step 5.*no checkpoint was saved yet"
    ):
        train(tmp_path, Broken(), config())
    assert not list(tmp_path.iterdir())


def test_a_resumed_training_keeps_the_precision_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = config(10).model_copy(update={"precision": "auto"})

    class Stopped(LineTask):
        def losses(self, batch: Any, progress: float) -> Any:
            if batch[0] == 7:
                raise SystemExit
            return super().losses(batch, progress)

    monkeypatch.setattr(device, "bf16_speedup", lambda: 4.0)
    with pytest.raises(SystemExit):
        train(tmp_path, Stopped(), half)
    monkeypatch.setattr(device, "bf16_speedup", lambda: 0.5)
    fitted = train(tmp_path, LineTask(), half)
    assert fitted.precision == "bf16"
    assert Checkpoint(fitted.checkpoint).state.precision == "bf16"
    explicit = half.model_copy(update={"precision": "fp32", "steps": 12})
    assert train(tmp_path, LineTask(), explicit).precision == "fp32"


def test_a_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "plain", LineTask(), config(10))
    task, write, overtaken = LineTask(), checkpoint._write, list[int]()

    def wait_and_write(draft: Path, saved: Saved, provenance: Provenance) -> None:
        until = time.monotonic() + 60
        while saved.state.step == 5 and task.seen[-1] < 8 and time.monotonic() < until:
            time.sleep(0.001)
        overtaken.append(task.seen[-1] + 1 - saved.state.step)
        write(draft, saved, provenance)

    monkeypatch.setattr(checkpoint, "_write", wait_and_write)
    train(tmp_path / "slow", task, config(10))
    assert overtaken[0] >= 4
    for step in ("step-00000005", "step-00000010"):
        one, other = (Checkpoint(str(tmp_path / name / step)) for name in ("plain", "slow"))
        assert same(one.weights(), other.weights())
        assert same(one.resume()["model"], other.resume()["model"])
        assert str(one.resume()["optimizers"]) == str(other.resume()["optimizers"])
        assert [row["step"] for row in one.state.history] == [row["step"] for row in other.state.history]


def test_compiled_training_gives_the_same_curve(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", LineTask(), config(4))
    compiled = train(tmp_path / "compiled", LineTask(), config(4, compile=True))
    one, other = ([row["loss"] for row in run.history if "loss" in row] for run in (plain, compiled))
    assert one == pytest.approx(other, rel=0.5)
    assert one[0] != one[-1]


def test_prefetch_keeps_order_and_passes_errors_on() -> None:
    assert list(prefetch(lambda step: step * step, 3, 7)) == [(3, 9), (4, 16), (5, 25), (6, 36)]
    with pytest.raises(ZeroDivisionError):
        list(prefetch(lambda step: 1 // (step - 2), 0, 5))
