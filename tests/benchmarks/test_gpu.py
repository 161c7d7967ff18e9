"""The measurements of a GPU, at tiny sizes on the CPU: that they run, not how fast."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import PARTS, SPEED, free_port, measure
from benchmarks.gpu.inputs import Inputs, Sizes
from benchmarks.timing import Row
from clipgen_core.recipes import named
from tests.conftest import tiny_clip_config, tiny_transformer_config, tiny_vqgan_config


def tiny_inputs(folder: Path, device: torch.device) -> Inputs:
    """What everything can be measured on within seconds."""
    parts = {"vqgan": tiny_vqgan_config(), "transformer": tiny_transformer_config()}
    recipe = named("demo").model_copy(update=parts)
    sizes = Sizes(
        recipes={"tiny": recipe},
        clip=tiny_clip_config(),
        jpeg_side=40,
        jpegs=24,
        rows=64,
        batches=(1, 2),
        steps=3,
        rounds=1,
        matrix=16,
        copied=2**10,
        compiled=False,  # compiling takes minutes here; tests/core/training/test_compiling.py compiles
    )
    return Inputs(sizes, device, folder, free_port())


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return tiny_inputs(tmp_path_factory.mktemp("gpu"), torch.device("cpu"))


def rows(inputs: Inputs, *parts: str) -> list[Row]:
    made = list(measure(inputs, parts))
    assert {row.benchmark for row in made} <= {*PARTS, "training"}
    assert not [row for row in made if math.isnan(row.value)]
    return made


@pytest.mark.parametrize("part", [one for one in SPEED if one not in ("vqgan", "transformer")])
def test_speeds_are_measured(part: str, inputs: Inputs) -> None:
    assert all(row.value > 0 for row in rows(inputs, part))


@pytest.mark.slow
def test_trainings_are_measured(inputs: Inputs) -> None:
    made = rows(inputs, "vqgan", "transformer")
    assert len(made) == 3 * 3  # a VQGAN and transformers of two orders
    assert all(row.value > 0 for row in made if "waits" not in row.what)


def test_a_device_that_is_the_cpu_agrees_with_the_cpu(inputs: Inputs) -> None:
    made = {row.what: row.value for row in rows(inputs, "agreement")}
    assert all(value == 1 for what, value in made.items() if "equal codes" in what)
    assert 0 < made["logits in bf16 against fp32 on the CPU, relative"] < 0.05


def test_a_part_that_fails_does_not_stop_the_others(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: Inputs) -> list[Row]:
        raise RuntimeError("no memory")

    monkeypatch.setattr("benchmarks.gpu.speed.encoding", broken)
    made = list(measure(inputs, ("encoding", "peaks")))
    assert (made[0].what, made[0].detail) == ("FAILED", "RuntimeError: no memory")
    assert [row.benchmark for row in made[1:]] == ["peaks", "peaks"]
    assert "no memory" in capsys.readouterr().err


@pytest.mark.slow
def test_it_needs_neither_tables_nor_pipeline_nor_tracking() -> None:
    code = "import sys; sys.modules |= dict.fromkeys(['lance', 'dagster', 'mlflow'])"
    modules = "benchmarks.gpu.speed, benchmarks.gpu.agreement"
    command = [sys.executable, "-c", f"{code}; import {modules}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_is_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "gpu", "--json", str(tmp_path / "gpu.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "there is no GPU here" in done.stderr
