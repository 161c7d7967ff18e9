"""The product's front door: the quick demo as `make demo QUICK=1` runs it, on the real pictures."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

REPOSITORY = Path(__file__).parents[1]
README = REPOSITORY / "README.md"
EMOJI = REPOSITORY / ".clipgen" / "emoji"


@pytest.mark.slow
@pytest.mark.skipif(not EMOJI.exists(), reason="needs the demo's pictures: run `make test`")
def test_the_quick_demo_from_pictures_to_a_registered_model(tmp_path: Path) -> None:
    (tmp_path / ".clipgen").mkdir()
    (tmp_path / ".clipgen" / "emoji").symlink_to(EMOJI)
    (tmp_path / "dagster").mkdir()
    (tmp_path / "dagster" / "dagster.yaml").write_bytes(
        (REPOSITORY / "infra" / "dagster" / "local.yaml").read_bytes()
    )
    environment = os.environ | {"DAGSTER_HOME": str(tmp_path / "dagster"), "TQDM_DISABLE": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    configs = REPOSITORY / "infra" / "run_configs"

    def run(program: str, *args: str) -> str:
        command = [str(Path(sys.executable).parent / program), *args]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    job = ("job", "execute", "-m", "pipelines.definitions", "-j")
    quick = ("-c", str(configs / "quick.yaml"))
    run("dagster", *job, "clip_training", "-c", str(configs / "demo-clip.yaml"), *quick)
    run("dagster", *job, "clip_gen", "-c", str(configs / "demo.yaml"), *quick)
    summary = run("python", str(REPOSITORY / "infra" / "demo" / "show.py"), ".clipgen/quick")
    report = Path(summary.split("report:")[1].split()[0])
    assert report.is_file() and Image.open(report.parent / "grid.png").width > 64

    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path}/.clipgen/quick/mlflow/mlflow.db"
    Image.open(next(EMOJI.rglob("*.png"))).save(tmp_path / "photo.png")
    said = {args[0]: run("clipgen", *args) for args in readme_commands()}
    assert Image.open(tmp_path / "out.png").width == 4 * 64 + 3 * 2
    assert said["search"].count("file://") == 10
    assert "-" in said["champions"] and "images" in said["lineage"]


def readme_commands() -> list[list[str]]:
    """The README's commands about the demo's model, as they stand there."""
    lines = re.findall(r"^    (?:\.venv/bin/)?clipgen (.+)$", README.read_text(), flags=re.M)
    commands = [shlex.split(line, comments=True) for line in lines]
    wanted = ("generate", "search", "vary", "champions", "lineage")
    return [one for one in commands if one[0] in wanted and "public/" not in one]
