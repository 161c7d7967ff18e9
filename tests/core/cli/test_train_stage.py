"""`clipgen train-stage`: one stage from the command line, in one process and under torchrun."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clipgen_core.cli import app
from clipgen_core.cli.train_stage import read_settings
from clipgen_core.errors import ClipgenError
from clipgen_core.storage import Storage
from clipgen_core.training.checkpoint import Checkpoint

SETTINGS = (
    "model.width=32",
    "model.layers=1",
    "model.heads=2",
    "transformer.train.steps=2",
    "train.batch_size=4",
    "train.optimizer=adamw",
)


def arguments(root: str, *settings: str) -> list[str]:
    chosen = [f"--set={one}" for one in (*SETTINGS, *settings)]
    return ["train-stage", "transformer", "--root", root, "--recipe", "demo", *chosen]


@pytest.fixture
def root(pipeline: Storage, storage: Storage) -> str:
    tokens = pipeline.current("tokens", "tests")
    storage.publish_current("tokens", tokens.path, tokens.digest)
    return storage.root


def test_settings_reach_the_training(root: str) -> None:
    done = CliRunner().invoke(app, arguments(root))
    assert done.exit_code == 0, done.output
    checkpoint = Storage(root).current("transformer", "tests").path
    assert Checkpoint(checkpoint).provenance.config["model"]["width"] == 32
    assert Checkpoint(checkpoint).state.step == 2
    assert "transformer is at" in done.output


@pytest.mark.slow
def test_torchrun_trains_in_two_processes(root: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "clipgen_core.cli", *arguments(root, "train.parallel=fsdp")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("transformer is at") == 1
    assert Checkpoint(Storage(root).current("transformer", "tests").path).state.step == 2


def test_values_are_read_as_json_if_they_are_json() -> None:
    given = ["train.steps=10", "train.optimizer=muon", "model.channels=[32, 64]", "start_from=null"]
    assert read_settings("vqgan", given) == {
        "vqgan.train.steps": 10,
        "vqgan.train.optimizer": "muon",
        "vqgan.model.channels": [32, 64],
        "vqgan.start_from": None,
    }
    with pytest.raises(ClipgenError, match="is a setting of vqgan, which training transformer does not read"):
        read_settings("transformer", ["vqgan.train.steps=3"])
    with pytest.raises(ClipgenError, match="has no '='"):
        read_settings("vqgan", ["train.steps"])


def test_a_name_may_start_with_the_stage() -> None:
    assert read_settings("vqgan", ["vqgan.train.steps=10"]) == {"vqgan.train.steps": 10}


def test_bad_input_is_one_sentence(storage: Storage, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, arguments(storage.root))
    assert done.exit_code == 2
    said = " ".join(done.output.split())
    assert "no token_shards under" in said and "or run `clipgen tokens` first" in said
    done = CliRunner().invoke(app, [*arguments(storage.root), "--tokens", str(tmp_path)])
    assert done.exit_code == 2
    assert "materialise token_shards first in Dagster" in " ".join(done.output.split())
    done = CliRunner().invoke(app, ["train-stage", "clip", "--root", storage.root, "--recipe", "demo"])
    assert done.exit_code == 2 and "--captions" in done.output
    done = CliRunner().invoke(app, arguments(storage.root, "train.step=3"))
    assert done.exit_code == 2 and "did you mean 'transformer.train.steps'?" in done.output
