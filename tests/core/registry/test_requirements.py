"""A registered model works where nothing but its own requirements is installed."""

import base64
import json
import os
import subprocess
import sys
import urllib.error
from importlib.metadata import PathDistribution, packages_distributions
from pathlib import Path

import mlflow
import pytest
from packaging.requirements import Requirement

from clipgen_core.data.pixels import png_bytes
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.parts import copy_parts, read_parts
from clipgen_core.mlflow_tracker import mlflow_run
from clipgen_core.registry.versions import PARAMS, log_model, requirements
from tests.conftest import answers, free_port, wait_for
from tests.core.models.test_clip import write_clip
from tests.core.registry.test_champions import post
from tests.test_layers import imports
from tests.test_wheel import closure, linked, run

CORE = Path(__file__).parents[3] / "clipgen_core"
OPTIONAL = {  # for a training, a kind of file or a CLIP, which say in a sentence that it is missing
    "huggingface_hub",  # open_clip brings it
    "lpips",
    "rasterio",
    "rawpy",
    "transformers",
}
ENCODE = """
import sys
from clipgen_core.models.clip import ClipEncoder
print(ClipEncoder(sys.argv[1]).encode_texts(["a red disc"]).shape)
"""


def environment(folder: Path, lines: list[str]) -> Path:
    """What `pip install -r` makes of a requirements file: the folder of its commands."""
    metadata = folder / "registered-1.dist-info"
    metadata.mkdir()
    asked = [f"Requires-Dist: {line}" for line in lines]
    (metadata / "METADATA").write_text("\n".join(["Name: registered", "Version: 1", *asked]))
    return linked(folder / "venv", closure(PathDistribution(metadata), ()))


def imported_by(module: str) -> set[str]:
    """The modules of others that a module imports, or one of the core behind it, functions included."""
    seen, todo, others = set[Path](), [module], set[str]()
    while todo:
        file = CORE.parent / f"{todo.pop().replace('.', '/')}.py"
        if file in seen or not file.exists():
            continue
        seen.add(file)
        found = list(imports(file.read_text()))
        ours = [one for one in found if one.startswith("clipgen_core.")]
        todo += [*ours, *(one.rpartition(".")[0] for one in ours)]  # a name, or a module
        others |= {one.partition(".")[0] for one in found} - {"clipgen_core"}
    return others - sys.stdlib_module_names


def test_the_requirements_name_what_the_model_imports(clip_reference: str, tmp_path: Path) -> None:
    named = {Requirement(line).name for line in requirements(clip_reference)} | {"mlflow"}
    of_module = packages_distributions()
    imported = imported_by("clipgen_core.registry.registered_model")
    assert {"torch", "lance", "mlflow"} < imported
    for module in imported - OPTIONAL:
        assert named & set(of_module[module]), module
    assert not any("+" in line for line in requirements(clip_reference))
    siglip = {Requirement(line).name for line in requirements(write_clip(tmp_path, "SigLIP"))}
    assert siglip - named == {"transformers", "sentencepiece"}


@pytest.mark.slow
def test_the_model_serves_where_only_its_requirements_are_installed(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, generator = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "generator"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    parts = read_parts(checkpoint)
    copy_parts(parts, generator)
    params = {"n": 1, "seed": 0} | parts.sampling.model_dump(include=set(PARAMS))
    with mlflow_run("model", tracking_uri=uri, artifacts=f"file://{tmp_path}/files", tags={}) as tracker:
        logged = log_model(generator, params, tracker)
    model = mlflow.artifacts.download_artifacts(logged, dst_path=str(tmp_path / "model"))
    lines = (Path(model) / "requirements.txt").read_text().splitlines()
    programs, port = environment(tmp_path, lines), free_port()
    command = [str(programs / "python"), "-m", "mlflow", "models", "serve", "-m", model]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    ours = ("PYTHON", "MLFLOW", "VIRTUAL_ENV")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    clean["PATH"] = f"{programs}{os.pathsep}{clean['PATH']}"
    log = tmp_path / "log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            command, cwd=tmp_path, env=clean, stdout=file, stderr=file, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: answers(f"{url}/ping"), "the server", alive=lambda: server.poll() is None)
        chosen = {"n": 2, "candidates": 1, "top_k": 3, "top_p": 0.9, "condition": "text"}
        got = post(url, {"inputs": ["a red disc"], "params": chosen})["predictions"]
        rows = TextToImage.from_pretrained(generator).generate("a red disc", **chosen)
        assert [base64.b64decode(one) for one in got] == [png_bytes(image) for image in rows[0]]
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(url, {"inputs": ["a"], "params": {"n": 0}})
        assert refused.value.code == 400 and "n x candidates is 0" in json.load(refused.value)["message"]
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)


@pytest.mark.slow
def test_a_clip_with_a_tokenizer_of_transformers_brings_it(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    reference = write_clip(folder, "SigLIP")
    programs = environment(tmp_path, requirements(reference))
    done = run(programs / "python", "-c", ENCODE, reference, cwd=tmp_path, PYTHONPATH=str(CORE.parent))
    assert done.returncode == 0 and done.stdout.strip() == "(1, 32)", done.stderr
