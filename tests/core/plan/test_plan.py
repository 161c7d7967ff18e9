import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from clipgen_core import recipes
from clipgen_core.cli import app
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.plan import plan, speed
from clipgen_core.progress import duration
from clipgen_core.recipes import Recipe
from tests.pipelines.test_assets import TINY

TRAINED_STAGES = ("clip", "vqgan", "transformer")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "TIMED_SECONDS", 0.05)
    monkeypatch.setitem(recipes.RECIPES, "tiny", TINY)


def test_a_plan_counts_measures_and_writes_nothing(
    pictures: Path, clip_reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    estimate = plan(str(pictures / "pictures"), TINY, clip_reference)
    seen = estimate.source
    assert (seen.files, seen.images, seen.usable) == (72, 72, 1.0)
    assert 32 <= seen.mean_side <= 34
    lines = {line.stage: line for line in estimate.lines}
    assert list(lines) == [
        "raw_images",
        "clip_embeddings",
        "vqgan_checkpoint",
        "token_shards",
        "transformer_checkpoint",
    ]
    assert lines["raw_images"].disk == sum(f.stat().st_size for f in (pictures / "pictures").rglob("*.png"))
    assert lines["clip_embeddings"].disk == 72 * (4 * 32 + 64)
    assert all(line.hours > 0 for line in estimate.lines)
    assert all(verdict.fits for verdict in estimate.verdicts.values())
    assert not list(tmp_path.iterdir())


def test_a_plan_counts_no_disk_for_images_that_are_referenced(pictures: Path, clip_reference: str) -> None:
    recipe = TINY.override({"images.store": "references"})
    lines = {line.stage: line for line in plan(str(pictures / "pictures"), recipe, clip_reference).lines}
    assert lines["raw_images"].disk == 0 < lines["clip_embeddings"].disk


def test_hours_grow_with_the_steps_and_the_batch(
    pictures: Path, clip_reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "_seconds", lambda _: 0.0)
    monkeypatch.setattr(speed, "_seconds_of", lambda _, rows, most: 0.5 * rows)

    def hours(steps: int, batch: int) -> float:
        recipe = TINY.override({"transformer.train.steps": steps, "transformer.train.batch_size": batch})
        return plan(str(pictures / "pictures"), recipe, clip_reference).lines[-1].hours

    assert hours(10, 8) == pytest.approx(10 * 8 * 0.5 / 3600)
    assert hours(1000, 16) == pytest.approx(200 * hours(10, 8))


def test_the_time_of_training_a_clip_counts_where_the_plan_trains_one(
    pictures: Path, clip_reference: str
) -> None:
    own, given = (plan(str(pictures / "pictures"), TINY, clip).lines for clip in ("trained", clip_reference))
    assert [line.stage for line in own] == ["clip_checkpoint", *(line.stage for line in given)]
    assert own[0].hours > 0


@pytest.fixture
def output(pictures: Path, clip_reference: str) -> Iterator[str]:
    asked = ["plan", str(pictures / "pictures"), "--recipe", "tiny", "--clip", clip_reference]
    yield CliRunner().invoke(app, asked).output


def test_the_command_prints_needs_and_verdicts(output: str) -> None:
    assert "72 files, about 72 images, 100% usable" in output and "in all" in output
    assert "activations an image" in output
    assert "The VQGAN fits" in output and "The transformer fits" in output and "_" not in output


def test_the_command_proposes_the_override_that_fits(
    pictures: Path, clip_reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = TINY.override({"transformer.train.batch_size": 20_000, "vqgan.train.batch_size": 64})
    monkeypatch.setitem(recipes.RECIPES, "tiny", wide)
    asked = ["plan", str(pictures / "pictures"), "--recipe", "tiny", "--clip", clip_reference, "--gpu", "2"]
    shown = CliRunner().invoke(app, asked).output
    assert "The transformer does not fit 2 GB with a tenth to spare: it needs" in shown
    assert "a GPU of 2 GB" in shown and "The times are not known" in shown and " min" not in shown
    given = shown.partition("With ")[2].partition(" it needs")[0]
    assert given.startswith("-o transformer.train.micro_batch=")
    assert "The transformer fits 2 GB" in CliRunner().invoke(app, [*asked, *given.split()]).output


def test_bad_input_gives_one_sentence(pictures: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    assert run(app, ["plan", str(tmp_path), "--recipe", "tiny"]).exit_code == 2
    (tmp_path / "x.png").write_bytes(b"no picture")
    assert run(app, ["plan", str(tmp_path), "--recipe", "tiny"]).exit_code == 2
    assert run(app, ["plan", str(tmp_path), "--recipe", "nothing"]).exit_code == 2
    asked = ["plan", str(pictures / "pictures"), "--recipe", "tiny"]
    assert run(app, [*asked, "-o", "vqgan.train.steps"]).exit_code == 2
    assert run(app, [*asked, "-o", "vqgan.train.step=1"]).exit_code == 2


@pytest.mark.parametrize(
    ("hours", "said"),
    [
        (0.001, "under 1 minute"),
        (0.02, "1 minute"),
        (0.5, "30 minutes"),
        (3.2, "3 hours"),
        (31, "31 hours"),
        (72, "3 days"),
        (1.57e5, "18 years"),
    ],
)
def test_times_are_in_units_of_people(hours: float, said: str) -> None:
    assert duration(hours) == said


@pytest.mark.parametrize("recipe", ["paper", "b", "l", "xl"])
@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_the_large_recipes_take_no_more_passes_than_needed(recipe: str, processes: int) -> None:
    made: Recipe = recipes.named(recipe)
    for train in (made.vqgan.train, made.transformer.train):
        passes = train.passes(processes)
        assert train.batch_size // (processes * passes) <= train.micro_batch
        assert passes == 1 or train.batch_size // (processes * (passes // 2)) > train.micro_batch


@pytest.mark.parametrize("each", [0.002, 0.1])  # a batch that is quick, and one that is slow
def test_the_time_of_a_step_is_that_of_a_core_and_a_part_of_it_is_that_of_any_batch(each: float) -> None:
    def spent(rows: int) -> None:
        until = time.thread_time() + 5 * each + each * rows
        while time.thread_time() < until:
            pass
        time.sleep(0.05)  # while another program has the core

    assert speed._seconds_of(spent, 32, 8) == pytest.approx(37 * each, rel=0.2)


def test_as_many_threads_compute_after_a_measurement_as_before(clip_reference: str) -> None:
    threads, fp32 = torch.get_num_threads(), {f"{one}.train.precision": "fp32" for one in TRAINED_STAGES}
    measured = speed.measure(TINY.override(fp32), ClipEncoder(clip_reference), own_clip=True)
    assert min(dataclasses.astuple(measured)) > 0 and torch.get_num_threads() == threads
