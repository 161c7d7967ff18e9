"""The product's front door: the quick demo as `make demo QUICK=1` runs it, on a part of its pictures."""

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from PIL import Image

from clipgen_core.storage import Storage
from tests.conftest import EMOJI, blocks, commands, free_port, needs_emoji, wait_for

REPOSITORY = Path(__file__).parents[1]
DOCS = [REPOSITORY / "README.md"]
DOCS += [REPOSITORY / "docs" / f"{page}.md" for page in ("demo", "registry", "gap", "serving")]


@needs_emoji
def test_held_out_names_reach_the_clip_by_another_vendor_and_the_pipeline_not_at_all() -> None:
    def rows(name: str) -> list[dict[str, str]]:
        with (EMOJI / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    held_out = {row["prompt"] for row in rows("prompts.csv") if row["split"] == "held-out"}
    named = {row["file"] for row in rows("captions.csv") if row["caption"] in held_out}
    assert len(held_out) == 90
    assert {file.split("/")[1] for file in named if file.startswith("clip/")} == {"fluent"}
    assert not any(row["file"].startswith("held_out/") for row in rows("captions.csv"))
    seen = {row["file"] for row in rows("prompts.csv") if row["split"] == "train"}
    assert {path.relative_to(EMOJI).as_posix() for path in EMOJI.glob("pictures/*/*")} == seen
    assert held_out.isdisjoint((EMOJI / "texts.txt").read_text(encoding="utf-8").splitlines())


def test_the_summary_is_a_few_figures_and_the_report(tmp_path: Path) -> None:
    report = tmp_path / "report"
    report.mkdir()
    metrics = {f"against_reference/generated/metric_{i}": float(i) for i in range(90)}
    metrics |= {"held-out/prompts": 90, "held-out/generated/clip_score": 0.5021, "memory/copies": 0.25}
    (report / "metrics.json").write_text(json.dumps(metrics))
    Storage(str(tmp_path / "root")).publish_current("evaluation", str(report), "x")
    command = [sys.executable, str(REPOSITORY / "infra" / "demo" / "show.py"), str(tmp_path / "root")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(said) < 15 and said[-1].split() == ["report:", str(report / "report.html")]
    assert "CLIP score, held-out prompts, generated images" in said[0] and said[0].endswith("0.502")
    assert said[1].split()[-2:] == ["copies", "25%"]


@pytest.mark.slow
@needs_emoji
@pytest.mark.timeout(1800)
def test_the_quick_demo_from_pictures_to_a_registered_model(tmp_path: Path) -> None:
    lay_out_a_part(tmp_path / ".clipgen" / "emoji")
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
    said = {args[0]: run("clipgen", *args) for args in documented_commands()}
    assert said.keys() == {"generate", "search", "vary", "champions", "lineage", "export"}
    assert (tmp_path / "my-model" / "model.safetensors").is_file()
    assert Image.open(tmp_path / "out.png").size == (4 * 64 + 3 * 2, 2 * 64 + 2)
    assert said["search"].count("file://") == 10
    assert "-" in said["champions"] and "images" in said["lineage"]
    for code in documented_python():
        (tmp_path / "heart.png").unlink(missing_ok=True)
        (tmp_path / "use.py").write_text(code)
        run("python", "use.py")
        assert Image.open(tmp_path / "heart.png").size == (64, 64)
    assert_dagsters_page_shows_the_run(tmp_path, environment)


def lay_out_a_part(folder: Path) -> None:
    """A quarter of the demo's names with all that it has of them, so that the test is fast."""
    for name in ("captions.csv", "prompts.csv"):
        with (EMOJI / name).open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        at = header.index("file")
        kept = [row for row in rows if crc32(Path(row[at]).name.encode()) % 4 == 0]
        for picture in {row[at] for row in kept}:
            (folder / picture).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(EMOJI / picture, folder / picture)
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *kept])
    shutil.copy(EMOJI / "texts.txt", folder)


def documented_python() -> list[str]:
    """The Python of the README and of the page about using a model, but for editing."""
    found = [code for file in DOCS for code in blocks(file, "python") if "import TextToImage" in code]
    assert len(found) == 2
    return found


def assert_dagsters_page_shows_the_run(folder: Path, environment: dict[str, str]) -> None:
    """`make ui`, at a port of its own."""
    makefile = (REPOSITORY / "Makefile").read_text()
    (command,) = re.findall(r"^\t\$\(BIN\)/(dagster dev .+)$", makefile, flags=re.M)
    port, (program, *options) = free_port(), command.split()
    words = [str(Path(sys.executable).parent / program), *options, "-p", str(port)]
    query = """{ assetOrError(assetKey: {path: ["transformer_checkpoint"]}) {
        ... on Asset { assetMaterializations { runId } } } }"""
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql",
        json.dumps({"query": query}).encode(),
        {"Content-Type": "application/json"},
    )
    environment = environment | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        words,
        cwd=REPOSITORY,
        env=environment,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ) as page:
        try:
            answer = wait_for(lambda: answer_of(asked), "Dagster's page")
        finally:
            os.killpg(page.pid, signal.SIGKILL)
    assert len(answer["data"]["assetOrError"]["assetMaterializations"]) == 1


def answer_of(request: urllib.request.Request) -> Any:
    try:
        return json.load(urllib.request.urlopen(request, timeout=5))
    except OSError:
        return None


def documented_commands() -> list[list[str]]:
    """The documentation's commands about the demo's model, as they are written there."""
    words = [shlex.split(line) for file in DOCS for line in commands(file)]
    wanted = ("generate", "search", "vary", "champions", "lineage", "export")
    return [one for program, *one in words if program.endswith("clipgen") and one[0] in wanted]
