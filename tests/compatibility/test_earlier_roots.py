"""What version 0.1 wrote still works: checkpoints, registered models and trainings to go on with.

root-0.1.tar.xz was written by the code of that version, in /tmp/clipgen-0.1.
"""

import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

from clipgen_core import device
from clipgen_core.generation.generator import TextToImage
from clipgen_core.schema import TokenManifest, digest_of
from clipgen_core.settings.transformer import Config
from clipgen_core.stages import transformer
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker

ARCHIVE = Path(__file__).with_name("root-0.1.tar.xz")
WRITTEN_IN = "/tmp/clipgen-0.1"
PROMPTS = ["a red disc", "a blue square"]
RUN = "6430f36c5c1f7999"  # the transformer training named "everywhere" in checkpoints.json
PREDICT = """
import sys
import torch
torch.cpu.get_capabilities = dict
import clipgen_core.generation.generator, mlflow
pngs = mlflow.pyfunc.load_model(sys.argv[1]).predict(["a red disc"], params={"seed": 5})
assert [png[:4] for png in pngs] == [b"\\x89PNG"], pngs
"""


def extract(folder: Path) -> Path:
    """The archive's files, whose JSON names `folder` as the place where they lie."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    for file in folder.rglob("*.json"):
        file.write_text(file.read_text().replace(WRITTEN_IN, str(folder)))
    return folder


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tests must not write to it."""
    return extract(tmp_path_factory.mktemp("clipgen-0.1"))


@pytest.fixture(autouse=True)
def _fp32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The archive's pictures were sampled in fp32."""
    monkeypatch.setattr(device, "bf16_speedup", lambda: 0.0)
    yield


@pytest.mark.parametrize("name", ["learned", "everywhere"])
def test_a_checkpoint_generates_what_it_did(earlier: Path, name: str) -> None:
    checkpoint = earlier / "root" / json.loads((earlier / "checkpoints.json").read_text())[name]
    rows = TextToImage.from_pretrained(str(checkpoint)).generate_scored(PROMPTS, n=2, seed=5)
    generated = [one for row in rows for one in row]
    with np.load(earlier / "expected.npz") as expected:
        codes, images, scores = (expected[f"{name}_{kind}"] for kind in ("codes", "images", "scores"))
    assert np.array_equal([one.codes for one in generated], codes.reshape(4, *codes.shape[-2:]))
    pixels = np.stack([np.asarray(one.image, np.int64) for one in generated])
    assert np.abs(pixels - images.reshape(pixels.shape)).max() <= 1
    assert np.allclose([one.clip_score for one in generated], scores.ravel(), atol=1e-3)


def test_a_registered_generator_loads(earlier: Path) -> None:
    generator = TextToImage.from_pretrained(str(earlier / "registered" / "artifacts" / "generator"))
    assert [len(row) for row in generator.generate(PROMPTS, n=2, seed=5)] == [2, 2]


def test_mlflow_runs_a_registered_models_stored_code_beside_this_version(earlier: Path) -> None:
    command = [sys.executable, "-c", PREDICT, str(earlier / "registered")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def training(tmp_path: Path) -> tuple[Config, Path, Path]:
    """The configuration, the token shards and the checkpoint of a finished training.

    The folder of a training is named by a digest in which its settings of that time and the manifest of the
    token shards count, and so the manifest's paths: the name follows the place to which it was moved.
    """
    root = extract(tmp_path) / "root"
    (tokens,) = (root / "tokens").iterdir()
    folder = root / "checkpoints" / "transformer" / RUN
    written = json.loads((folder / "step-00000006" / "config.json").read_text())
    config = Config.model_validate(written["config"])

    def digest(manifest: str) -> str:
        upstream = TokenManifest.model_validate_json(manifest).model_dump()
        settings = {name: value for name, value in written["config"].items() if name != "sampling"}
        return digest_of([settings, upstream, list(IMAGENET_CLASSNAMES)])

    manifest = (tokens / "manifest.json").read_text()
    assert digest(manifest.replace(str(tmp_path), WRITTEN_IN)) == RUN
    moved = folder.rename(folder.with_name(digest(manifest)))
    return config, tokens, moved / "step-00000006"


def run(config: Config, tokens: Path, texts: str | None = None) -> transformer.Result:
    out = Storage(str(tokens.parents[1]))
    return transformer.run(config, tokens=str(tokens), out=out, tracker=NullTracker(), texts=texts)


def test_a_finished_training_is_found_again(training: tuple[Config, Path, Path]) -> None:
    config, tokens, checkpoint = training
    written = (checkpoint / "model.safetensors").stat().st_mtime_ns
    result = run(config, tokens)
    assert result.checkpoint == str(checkpoint)
    assert (checkpoint / "model.safetensors").stat().st_mtime_ns == written
    assert result.fitted.metrics["validation_loss"] > 0


def test_a_training_on_other_texts_is_another(training: tuple[Config, Path, Path], tmp_path: Path) -> None:
    """Version 0.1 did not note the texts, but named the folder after them."""
    config, tokens, checkpoint = training
    (tmp_path / "texts.txt").write_text("a red disc\na blue square\n")
    short = config.model_copy(update={"train": config.train.model_copy(update={"keep_checkpoints": 1})})
    assert run(short, tokens).checkpoint == str(checkpoint)
    assert run(short, tokens, str(tmp_path / "texts.txt")).checkpoint != str(checkpoint)


def test_a_training_that_was_cut_short_goes_on(training: tuple[Config, Path, Path]) -> None:
    config, tokens, finished = training
    checkpoint = finished.rename(finished.with_name("step-00000004"))
    state = json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "state.json").write_text(json.dumps(state | {"step": 4}))
    result = run(config, tokens)
    assert result.checkpoint == str(finished)
    assert TextToImage.from_pretrained(result.checkpoint).generate(["a red disc"])
