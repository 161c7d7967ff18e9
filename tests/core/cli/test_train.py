"""`clipgen train` and `clipgen init`: from a folder of images to a model in one command."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from clipgen_core.cli import app
from clipgen_core.cli.train import DAGSTER, execute
from clipgen_core.data.prompts import read_prompts
from clipgen_core.errors import ClipgenError
from clipgen_core.generation.generator import TextToImage
from clipgen_core.plan import speed
from clipgen_core.proposal import clips
from clipgen_core.storage import Storage

TINY = {
    "clip.vision_width": 64,
    "clip.vision_layers": 1,
    "clip.text_width": 64,
    "clip.embed_dim": 32,
    "clip.image_size": 32,
    "clip.train.batch_size": 16,
    "vqgan.model.image_size": 32,
    "vqgan.model.channels": [32, 64],
    "vqgan.train.batch_size": 4,
    "vqgan.perceptual_blocks": 1,
    "transformer.model.width": 32,
    "transformer.model.layers": 1,
    "transformer.model.heads": 2,
    "transformer.train.batch_size": 8,
    "transformer.train.steps": 2,
    "vqgan.train.steps": 2,
    "clip.train.steps": 2,
    "evaluation.scored": 4,
    "evaluation.reference_images": 12,
    "evaluation.thresholds.min_prompts": 4,
}
OVERRIDES = [part for name, value in TINY.items() for part in ("-o", f"{name}={json.dumps(value)}")]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(reference: str) -> str:
        raise ClipgenError(f"CLIP {reference!r} could not be fetched: check the network")

    monkeypatch.setattr(clips, "available", unreachable)
    monkeypatch.setattr(speed, "TIMED_SECONDS", 0.0)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_one_command_makes_a_model_of_a_folder(pictures: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = str(pictures / "pictures")
    done = CliRunner().invoke(app, ["train", folder, "--name", "shapes", "--recipe", "quick", *OVERRIDES])
    assert done.exit_code == 0, done.output + capfd.readouterr().err
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["images", "CLIP", "recipe", "prompts", "time"]
    assert "CLIP score, all prompts, generated images" in done.output
    root = Storage(".clipgen/shapes")
    report = root.current("evaluation", "tests").path
    assert f"report  {report}/report.html" in done.output and Path(report, "grid.png").exists()
    assert "model   models:/shapes@champion, version 1" in done.output
    records = json.loads(Path(report, "prompts.json").read_text())
    names = {prompt.text for prompt in read_prompts(f"names:{folder}")}
    assert len(records) == 4 and {record["prompt"] for record in records} <= names
    generator = TextToImage.from_pretrained(root.current("transformer", "tests").path)
    assert generator.generate("red disc")[0][0].size == (32, 32)
    assert Path(".clipgen/dagster/dagster.yaml").exists()


def test_a_dry_run_writes_nothing_and_init_writes_run_configs(pictures: Path) -> None:
    asked = [str(pictures / "pictures"), "--recipe", "quick"]
    done = CliRunner().invoke(app, ["train", *asked, "--dry-run"])
    assert done.exit_code == 0 and not Path(".clipgen").exists(), done.output
    done = CliRunner().invoke(app, ["init", *asked])
    assert done.exit_code == 0 and "-j clip_gen -c .clipgen/runs/pictures/clip_gen.yaml" in done.output
    assert sorted(path.name for path in Path(".clipgen").rglob("*.yaml")) == [
        "clip_gen.yaml",
        "clip_training.yaml",
    ]


def test_the_instance_is_configured_as_that_of_make_demo() -> None:
    profile = Path(__file__).parents[3] / "infra" / "dagster" / "local.yaml"
    assert yaml.safe_load(DAGSTER) == yaml.safe_load(profile.read_text())


def test_a_run_that_fails_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("ops: {clip_checkpoint: {config: {captions: /no/such.csv}}}")
    with pytest.raises(ClipgenError, match="clip_training failed: what went wrong is above"):
        execute("clip_training", tmp_path / "run.yaml", str(tmp_path))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["/no/such/folder"], "the source folder /no/such/folder does not exist"),
        (["PICTURES", "--recipe", "huge"], "huge"),
        (["PICTURES", "-o", "vqgan.train.step=3"], "vqgan.train.step"),
        (["PICTURES", "--captions", "none.csv"], "none.csv does not exist: check the path"),
        (["PICTURES", "--prompts", "none.txt"], "none.txt does not exist: check the path"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(pictures: Path, asked: list[str], said: str) -> None:
    asked = [str(pictures / "pictures") if word == "PICTURES" else word for word in asked]
    done = CliRunner().invoke(app, ["train", *asked, "--dry-run"])
    assert done.exit_code == 2 and said in done.output and "Traceback" not in done.output, done.output
