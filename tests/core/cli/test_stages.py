"""`clipgen tokens` and `clipgen evaluate`: with `train-stage` and `register`, every stage without Dagster."""

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clipgen_core.cli import app
from clipgen_core.storage import Storage
from clipgen_core.tracking import LOCAL_FOLDER
from tests.core.cli.test_train_stage import SETTINGS


@pytest.fixture
def root(pipeline: Storage, tmp_path: Path) -> str:
    """A root in which the images are embedded and the VQGAN is trained."""
    root = shutil.copytree(pipeline.root, tmp_path / "root")
    shutil.rmtree(root / "tokens")
    (root / "current" / "tokens.json").unlink()
    return str(root)


@pytest.mark.slow
def test_all_stages_run_without_dagster(
    root: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIPGEN_ROOT", root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def said(*words: str) -> str:
        done = CliRunner().invoke(app, list(words))
        assert done.exit_code == 0, done.output
        return re.sub(r"\s+", " ", done.output)

    assert "72 images are in the token shards" in said("tokens", "--recipe", "quick")
    assert "0 were encoded now" in said("tokens", "--recipe", "quick", "--set", "exclude_duplicates=1")
    said("train-stage", "transformer", "--recipe", "quick", *(f"--set={one}" for one in SETTINGS))
    sizes = ("images_shown=1", "scored=4", "reconstructions=2", 'shown=["a red disc"]')
    evaluated = said(
        "evaluate",
        *("--recipe", "quick", "--prompts", str(pictures / "prompts.csv")),
        *(f"--set={one}" for one in sizes),
    )
    assert "not_memorised: passed" in evaluated and "CLIP score" in evaluated
    report = Storage(root).current("evaluation", "tests").path
    assert json.loads(Path(report, "metrics.json").read_text())["memory/copies"] <= 1
    assert "clip-gen@candidate is version 1" in said("register")
    assert Path(LOCAL_FOLDER, "mlflow.db").is_file()


def test_what_is_missing_is_one_sentence(storage: Storage) -> None:
    for command, missing in (
        ("tokens", "no clip_embeddings under"),
        ("evaluate", "or run `clipgen train-stage transformer` first"),
    ):
        done = CliRunner().invoke(app, [command, "--root", storage.root, "--recipe", "demo"])
        assert done.exit_code == 2 and missing in " ".join(done.output.split()), done.output
    done = CliRunner().invoke(app, ["tokens", "--root", storage.root, "--recipe", "demo", "--set", "view=2"])
    assert done.exit_code == 2 and "tokens.views" in done.output
