from pathlib import Path

import pytest
from typer.testing import CliRunner

from clipgen_core import plan as plan_module
from clipgen_core import recipes
from clipgen_core.cli import app
from clipgen_core.plan import plan
from tests.pipelines.test_assets import TINY


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "TIMED_SECONDS", 0.05)
    monkeypatch.setitem(recipes.RECIPES, "tiny", TINY)


def test_a_plan_counts_measures_and_writes_nothing(
    pictures: Path, clip_reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    estimate = plan(str(pictures / "pictures"), TINY, clip_reference)
    assert (estimate.files, estimate.images, estimate.usable) == (72, 72, 1.0)
    assert 32 <= estimate.mean_side <= 34
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
    assert not list(tmp_path.iterdir())


def test_hours_grow_with_steps_and_memory_with_the_batch(
    pictures: Path, clip_reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "_seconds", lambda _: 0.5)

    def transformer(steps: int, batch: int) -> plan_module.Line:
        train = TINY.transformer.train.model_copy(update={"steps": steps, "batch_size": batch})
        changed = TINY.transformer.model_copy(update={"train": train})
        recipe = TINY.model_copy(update={"transformer": changed})
        return plan(str(pictures / "pictures"), recipe, clip_reference).lines[-1]

    small, long, wide = transformer(10, 8), transformer(1000, 8), transformer(10, 800)
    assert small.hours == pytest.approx(10 * 8 * 0.5 / plan_module.FEW / 3600)
    assert long.hours == pytest.approx(100 * small.hours) and long.memory == small.memory
    assert wide.memory > 2 * small.memory


def test_the_command_prints_a_table_and_bad_input_one_sentence(
    pictures: Path, clip_reference: str, tmp_path: Path
) -> None:
    run = CliRunner().invoke
    asked = ["plan", str(pictures / "pictures"), "--preset", "tiny", "--clip", clip_reference]
    shown = run(app, asked).output
    assert "72 files, about 72 images, 100% usable" in shown and "in all" in shown
    assert run(app, ["plan", str(tmp_path), "--preset", "tiny"]).exit_code == 2
    (tmp_path / "x.png").write_bytes(b"no picture")
    assert run(app, ["plan", str(tmp_path), "--preset", "tiny"]).exit_code == 2
    assert run(app, ["plan", str(tmp_path), "--preset", "nothing"]).exit_code == 2
