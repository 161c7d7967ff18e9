"""What pip installs works: the wheel, away from the checkout, in its full and in its base installation.

An environment is a fresh venv with links to the distributions that the wheel's metadata asks for, and to no
others: what is not declared is not there.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path
from zipfile import Path as ZipPath
from zipfile import ZipFile

import pytest
import requests
import yaml
from moto.server import ThreadedMotoServer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from clipgen_core import __version__
from clipgen_core.data.tables import open_table
from clipgen_core.models.clip import LOCAL
from clipgen_core.storage import Storage
from tests.integration.servers import answers, free_port, wait_for

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("clipgen_core", "pipelines")
HEAVY = {
    "dagster",
    "mlflow",
    "scikit-learn",
    "matplotlib",
    "lpips",
    "torchmetrics",
    "jinja2",
    "psutil",
    "ray",
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources: a build writes beside them."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / file, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", str(out), str(source))
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pip install clipgen`: the folder of its commands."""
    return environment(tmp_path_factory.mktemp("base"), wheel)


@pytest.fixture(scope="module")
def full(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pip install 'clipgen[pipeline]'`: the folder of its commands."""
    return environment(tmp_path_factory.mktemp("full"), wheel, "pipeline")


def environment(folder: Path, wheel: Path, *extras: str) -> Path:
    programs = linked(folder, closure(metadata_of(wheel), extras))
    pip("--python", str(programs / "python"), "install", "--no-deps", "--no-index", str(wheel))
    return programs


def linked(folder: Path, distributions: Iterable[Distribution]) -> Path:
    """An environment with links to installed distributions: the folder of its commands."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for one in distributions:
        for name in {file.parts[0] for file in one.files or () if file.parts[0] != ".."}:
            if not (site / name).exists():
                (site / name).symlink_to(Path(str(one.locate_file(name))))
        for script in one.entry_points.select(group="console_scripts"):
            name, file = script.module, folder / "bin" / script.name
            file.write_text(f"#!{folder}/bin/python\nimport sys, {name}\nsys.exit({name}.{script.attr}())\n")
            file.chmod(0o755)
    return folder / "bin"


def closure(root: Distribution, extras: tuple[str, ...]) -> Iterator[Distribution]:
    """The installed distributions that `root` asks for, with theirs."""
    seen, todo = set[tuple[str, str]](), [(root, extra) for extra in ("", *extras)]
    while todo:
        one, extra = todo.pop()
        for line in one.requires or ():
            needed = Requirement(line)
            name = canonicalize_name(needed.name)
            if needed.marker and not needed.marker.evaluate({"extra": extra}):
                continue
            found = root if name == canonicalize_name(root.name) else distribution(name)
            for wanted in ("", *needed.extras):
                if (name, wanted) not in seen:
                    seen.add((name, wanted))
                    todo.append((found, wanted))
                    if found is not root:
                        yield found


def metadata_of(wheel: Path) -> Distribution:
    (folder,) = (one for one in ZipPath(wheel).iterdir() if one.name.endswith(".dist-info"))
    return PathDistribution(folder)  # type: ignore[arg-type]


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run(program: Path, *arguments: str, cwd: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """A program of an environment, which sees nothing of this process's Python or settings."""
    ours = re.compile("PYTHON|CLIPGEN_|MLFLOW_|DAGSTER_|RAY_|VIRTUAL_ENV")
    clean = {name: value for name, value in os.environ.items() if not ours.match(name)}
    home = cwd / "dagster"
    home.mkdir(exist_ok=True)
    return subprocess.run(
        [str(program), *arguments],
        cwd=cwd,
        env=clean
        | {"DAGSTER_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        | settings,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_holds_every_file_and_one_version(wheel: Path) -> None:
    held = {one.filename for one in ZipFile(wheel).infolist() if not one.is_dir()}
    ours = {name for name in held if not name.startswith(f"clipgen-{__version__}.dist-info/")}
    there = {
        str(file.relative_to(REPOSITORY))
        for package in PACKAGES
        for file in (REPOSITORY / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert ours == there
    assert metadata_of(wheel).version == __version__
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        assert "version" not in tomllib.load(file)["project"]


def test_the_base_asks_for_nothing_that_only_training_needs(wheel: Path) -> None:
    asked = [Requirement(line) for line in metadata_of(wheel).requires or ()]
    base = {canonicalize_name(one.name) for one in asked if not one.marker}
    assert "torch" in base and not base & HEAVY
    brought = {canonicalize_name(one.name) for one in closure(metadata_of(wheel), ())}
    assert not brought & (HEAVY - {"jinja2"})  # torch brings Jinja


PUBLIC = """
import sys, clipgen_core
assert "torch" not in sys.modules
from clipgen_core import ClipgenError, TextToImage
generator = TextToImage.from_pretrained(sys.argv[1])
((picture,),) = generator.generate(["a red disc"])
((like,),) = generator.variations([picture])
assert len(generator.search(generator.embed_text(["a disc"])[0], 2)) == 2
print(picture.size, like.image.size, clipgen_core.__file__)
"""


def test_the_base_generates(base: Path, checkpoint: str, tmp_path: Path) -> None:
    done = run(base / "clipgen", "--help", cwd=tmp_path)
    assert done.returncode == 0 and "generate" in done.stdout
    done = run(base / "clipgen", "generate", "a red disc", "-n", "1", "-m", checkpoint, cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "out.png").stat().st_size, done.stderr
    done = run(base / "python", "-c", PUBLIC, checkpoint, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(32, 32) (32, 32)") and str(base.parent) in done.stdout


@pytest.fixture(scope="module")
def siglip(clip_reference: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny CLIP with a tokenizer of the kind that SigLIP has."""
    folder = tmp_path_factory.mktemp("siglip") / "tiny"
    shutil.copytree(clip_reference.removeprefix(LOCAL), folder)
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = str(folder)
    file.write_text(json.dumps(config))
    return f"{LOCAL}{folder}"


MISSING = {
    "train-stage vqgan --recipe quick --root root": ("training and evaluation needs", "pipeline"),
    "embed s3://bucket/pictures --root root --clip SIGLIP": ("s3://bucket/pictures needs s3fs", "s3"),
    "generate x -m s3://bucket/model": ("s3://bucket/model/generator.json needs s3fs", "s3"),
    "generate x -m models:/clip-gen@champion": ("MLflow at sqlite:.+ needs mlflow", "pipeline"),
    "embed pictures --root root --clip SIGLIP": ("the tokenizer of .+ needs transformers", "siglip"),
    "champions --root root": ("MLflow at sqlite:.+ needs mlflow", "pipeline"),
    "serve -m model": ("`clipgen serve` needs python-multipart", "serve"),
    "ui -m model": ("`clipgen ui` needs gradio", "ui"),
}


COMMANDS = """
import json, sys
from clipgen_core.cli import app
for words in json.loads(sys.argv[1]):
    try:
        app(words)
    except SystemExit as end:
        print("ended with", end.code, file=sys.stderr)
"""
RAY_AND_INCEPTION = """
import sys
from clipgen_core import ClipgenError
from clipgen_core.judging.inception import Inception
from clipgen_core.stages import embeddings
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker

def embed():
    config = embeddings.Config(compute={"where": "ray"})
    images, clip = sys.argv[1:]
    embeddings.run(config, images=images, clip=clip, out=Storage("root"), tracker=NullTracker())

def load_a_training():
    from clipgen_core.stages import vqgan

for work in (embed, lambda: Inception("weights.pth"), load_a_training):
    try:
        work()
    except ClipgenError as error:
        print(error)
"""


def test_a_missing_extra_is_one_sentence(base: Path, pictures: Path, siglip: str, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    (tmp_path / "pictures").symlink_to(pictures / "pictures")
    commands = [command.replace("SIGLIP", siglip).split() for command in MISSING]
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    done = run(base / "python", "-c", COMMANDS, json.dumps(commands), cwd=tmp_path, MLFLOW_TRACKING_URI=uri)
    said = [line for line in done.stderr.splitlines() if line.startswith(("error:", "ended"))]
    assert "Traceback" not in done.stderr and said[1::2] == ["ended with 2"] * len(MISSING), done.stderr
    for line, (need, extra) in zip(said[::2], MISSING.values(), strict=True):
        sentence = rf"error: {need}.*, which is not installed: pip install 'clipgen\[{extra}\]'"
        assert re.fullmatch(sentence, line), line


def test_the_library_names_what_is_missing(base: Path, pipeline: Storage, tmp_path: Path) -> None:
    clip = pipeline.current("clip", "tests").path
    done = run(base / "python", "-c", RAY_AND_INCEPTION, pipeline.images, clip, cwd=tmp_path)
    assert done.stdout.splitlines() == [
        "compute.where: ray needs ray, which is not installed: pip install 'clipgen[ray]'",
        "Inception needs torch-fidelity, which is not installed: pip install 'clipgen[inception]'",
        "training and evaluation needs torchmetrics, which is not installed: pip install 'clipgen[pipeline]'",
    ], done.stderr


def test_dagster_loads_and_runs_the_definitions(
    full: Path, pictures: Path, clip_reference: str, tmp_path: Path
) -> None:
    dagster = (full / "python", "-m", "dagster")
    module = ("-m", "pipelines.definitions")
    done = run(*dagster, "definitions", "validate", *module, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    settings = {
        "CLIPGEN_SOURCE": str(pictures / "pictures"),
        "CLIPGEN_CLIP": clip_reference,
        "CLIPGEN_RECIPE": "quick",
        "CLIPGEN_ROOT": "root",
        "CLIPGEN_EXECUTOR": "in-process",
    }
    done = run(*dagster, "job", "execute", *module, "-j", "all_images", cwd=tmp_path, **settings)
    assert done.returncode == 0, done.stderr
    out = Storage(str(tmp_path / "root"))
    assert open_table(out.images).count_rows() == 72
    assert open_table(out.current("embeddings", "tests").path).count_rows() == 72
    done = run(*dagster, "definitions", "validate", *module, cwd=tmp_path, CLIPGEN_EXECUTOR="ray")
    sentence = "CLIPGEN_EXECUTOR=ray needs dagster-ray, which is not installed: pip install 'clipgen[ray]'"
    assert done.returncode and sentence in done.stderr + done.stdout


@pytest.fixture(scope="module")
def image(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the Dockerfile installs, without Ray and the page: the folder of its commands."""
    folder = environment(tmp_path_factory.mktemp("image"), wheel, "pipeline", "s3", "k8s")
    (folder / "entrypoint").symlink_to(REPOSITORY / "infra" / "docker" / "entrypoint.sh")
    return folder


def test_every_command_of_compose_runs_from_an_installed_package(image: Path, tmp_path: Path) -> None:
    services = yaml.safe_load((REPOSITORY / "infra" / "compose" / "compose.yaml").read_text())["services"]
    dockerfile = (REPOSITORY / "infra" / "docker" / "Dockerfile").read_text()
    services["code"]["command"] = json.loads(dockerfile.rpartition("CMD ")[2])
    ports = {"4000": str(free_port()), "3000": str(free_port()), "5000": str(free_port())}
    (tmp_path / "profiles").mkdir()
    shutil.copy(REPOSITORY / "infra" / "dagster" / "local.yaml", tmp_path / "profiles" / "compose.yaml")
    (tmp_path / "home").mkdir()
    workspace = {"grpc_server": {"host": "127.0.0.1", "port": int(ports["4000"]), "location_name": "clipgen"}}
    (tmp_path / "workspace.yaml").write_text(yaml.safe_dump({"load_from": [workspace]}))
    for name, content in (("key", "testing"), ("password", "x")):
        (tmp_path / name).write_text(content)
    s3 = ThreadedMotoServer(port=0)
    s3.start()
    host, port = s3.get_host_and_port()
    mlflow = f"sqlite:///{tmp_path}/mlflow.db"
    environment = {
        "PATH": f"{image}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "DAGSTER_HOME": str(tmp_path / "home"),
        "CLIPGEN_PROFILES": str(tmp_path / "profiles"),
        "AWS_ACCESS_KEY_ID_FILE": str(tmp_path / "key"),
        "AWS_SECRET_ACCESS_KEY_FILE": str(tmp_path / "key"),
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_REGION": "us-east-1",
    }

    def words(command: list[str]) -> list[str]:
        found = [ports.get(word, word).replace("0.0.0.0", "127.0.0.1") for word in command]
        return [
            word.replace("/opt/clipgen/workspace.yaml", str(tmp_path / "workspace.yaml")) for word in found
        ]

    def start(name: str, **settings: str) -> subprocess.Popen[bytes]:
        own = {"DAGSTER_PROFILE": services[name]["environment"]["DAGSTER_PROFILE"]}
        command = ["bash", str(image / "entrypoint"), *words(services[name]["command"])]
        with (tmp_path / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                command, cwd=tmp_path, env=environment | own | settings, stdout=log, stderr=log
            )

    def healthy(name: str) -> bool:
        kind, *command = services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        for own, free in ports.items():
            command = [word.replace(f"localhost:{own}", f"127.0.0.1:{free}") for word in command]
        done = subprocess.run(words(command), env=environment, cwd=tmp_path, capture_output=True, check=False)
        return not done.returncode

    processes = []
    try:
        bucket = start("bucket", DAGSTER_HOME="/proc/none")
        assert bucket.wait(120) == 0, (tmp_path / "bucket.log").read_text()
        assert "<Name>clipgen</Name>" in requests.get(f"http://{host}:{port}", timeout=10).text
        processes = [start("mlflow", MLFLOW_BACKEND_STORE_URI=mlflow), start("code")]
        wait_for(lambda: healthy("code"), "the code location")
        processes += [start("webserver"), start("daemon")]
        for name in ("webserver", "daemon"):
            wait_for(lambda name=name: healthy(name), name)  # type: ignore[misc]
        wait_for(lambda: answers(f"http://127.0.0.1:{ports['5000']}/health"), "MLflow")
        assert not [one.args for one in processes if one.poll() is not None]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:  # as an engine does
                process.kill()
                process.wait(20)
        s3.stop()


REPORT = """
from collections import defaultdict
from pathlib import Path
from clipgen_core.judging.impartiality import Impartiality
from clipgen_core.judging.page import render
from clipgen_core.judging.report import Curve, Report
metrics = defaultdict(lambda: 0.25, {"all/prompts": 4, "all/generated/clip_score": 0.25})
report = Report(
    model="clip-gen", date="2026-01-01", names=4,
    metrics=metrics, judge=Impartiality("tiny", False, None), reference=[], champion=None, verdicts=[],
    copy_share=0.0, views=None, samples=[], scored=[], reconstructions=[], starts=["from here"],
    curves=[Curve("loss", [(1, 2), (2, 1)])], made_from={"configuration": "{}"},
)
Path("report.html").write_text(render(report))
"""


def test_a_report_finds_its_template(full: Path, tmp_path: Path) -> None:
    done = run(full / "python", "-c", REPORT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "report.html").read_text()
    assert "0.250" in page and "from here" in page and "data:image/svg+xml" in page
