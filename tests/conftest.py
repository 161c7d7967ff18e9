"""Shared fixtures: tiny real pictures, a tiny real CLIP, tiny models. No network, no downloads."""

import fcntl
import functools
import multiprocessing
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image, ImageDraw

from clipgen_core.models.clip import LOCAL
from clipgen_core.settings.models import QuantizerConfig, TransformerConfig, VqganConfig
from clipgen_core.settings.training import TrainConfig
from clipgen_core.stages import clip as clip_stage
from clipgen_core.stages import embeddings, images, tokens, transformer, vqgan
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker

# imports once what `spawn` imports in every process; such processes have the environment of the first one
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.conftest"])
# the machine may be busy: how long a case takes says nothing
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")
RAY = Path(sys.executable).with_name("ray")
# Ray keeps the token that a process first read: all clusters of one process and its children have the same
os.environ["RAY_AUTH_MODE"] = "token"
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
LONGEST = ("test_demo.py", "test_servers.py")  # minutes each
EMOJI = Path(__file__).parents[1] / ".clipgen" / "emoji"
needs_emoji = pytest.mark.skipif(not EMOJI.exists(), reason="needs the demo's pictures: run `make test`")
SIZE = 32
COLOURS = ("red", "green", "blue", "orange", "purple", "black", "gold", "teal")
SHAPES = ("disc", "square", "cross")


def draw(colour: str, shape: str, size: int = SIZE) -> Image.Image:
    """A coloured shape on white."""
    image = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(image)
    box = (size // 5, size // 5, size * 4 // 5, size * 4 // 5)
    if shape == "disc":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.line(box, fill=colour, width=size // 6)
    return image


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _no_mlflow_of_an_earlier_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """`mlflow.set_tracking_uri` is for the whole process, and sets the environment for its children."""
    if "mlflow" in sys.modules:
        sys.modules["mlflow"].set_tracking_uri(None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 distinct pictures in three folders, with captions.csv and prompts.csv beside."""
    folder = tmp_path_factory.mktemp("pictures")
    captions, prompts = ["file,caption"], ["prompt,split,file"]
    for size in (SIZE, SIZE + 1, SIZE + 2):
        for shape in SHAPES:
            for colour in COLOURS:
                file = f"pictures/{shape}/{colour} {size}.png"
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                draw(colour, shape, size).save(folder / file)
                captions.append(f"{file},a {colour} {shape}")
                prompts.append(f"a {colour} {shape},train,{file}")
    (folder / "captions.csv").write_text("\n".join(captions))
    (folder / "prompts.csv").write_text("\n".join(prompts))
    return folder


def tiny_clip_config(steps: int = 2) -> clip_stage.Config:
    return clip_stage.Config(
        image_size=SIZE,
        patch_size=8,
        embed_dim=32,
        vision_width=64,
        vision_layers=2,
        text_width=64,
        text_layers=1,
        context_length=8,
        train=TrainConfig(steps=steps, batch_size=16, learning_rate=1e-3),
    )


@pytest.fixture(scope="session")
def clip_reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny untrained CLIP in open_clip's local-dir format."""
    config = tiny_clip_config()
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip") / "tiny"
    clip_stage.save_local_dir(open_clip.CLIP(**config.open_clip_config()), config, str(folder))
    return f"{LOCAL}{folder}"


def tiny_vqgan_config(steps: int = 4, **train: object) -> vqgan.Config:
    return vqgan.Config(
        model=VqganConfig(
            image_size=SIZE,
            channels=(32, 32),
            blocks=1,
            patch=4,
            quantizer=QuantizerConfig(codebook_size=16, code_dim=8),
        ),
        train=TrainConfig(steps=steps, batch_size=8, learning_rate=1e-3, **train),  # type: ignore[arg-type]
        adversarial_from=0.5,
        discriminator_width=16,
    )


def tiny_transformer_config(steps: int = 6, **train: object) -> transformer.Config:
    return transformer.Config(
        model=TransformerConfig(width=32, layers=2, heads=2, dropout=0.1),
        train=TrainConfig(
            steps=steps,
            batch_size=8,
            learning_rate=1e-3,
            ema_decay=0.9,
            checkpoint_every=2,
            **train,  # type: ignore[arg-type]
        ),
        corrupt=0.3,
    )


def of_order(order: str, config: transformer.Config) -> transformer.Config:
    """The same for a model of another order."""
    return config.model_copy(update={"model": config.model.model_copy(update={"order": order})})


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory, pictures: Path, clip_reference: str) -> Storage:
    """A root in which every stage up to the token shards has run. Tests must not write to it."""
    storage, tracker = Storage(str(tmp_path_factory.mktemp("root"))), NullTracker()
    storage.publish_current("clip", clip_reference, "tests")
    taken = images.run(images.Config(), source=str(pictures / "pictures"), out=storage, tracker=tracker)
    embedded = embeddings.run(
        embeddings.Config(), images=taken.table, clip=clip_reference, out=storage, tracker=tracker
    )
    trained = vqgan.run(
        tiny_vqgan_config(), images=taken.table, clip=clip_reference, out=storage, tracker=tracker
    )
    tokens.run(
        tokens.Config(views=2),
        images=taken.table,
        embeddings=embedded.table,
        vqgan=trained.checkpoint,
        out=storage,
        tracker=tracker,
    )
    return storage


@pytest.fixture(scope="session")
def checkpoint(pipeline: Storage, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A transformer checkpoint trained on the pipeline's token shards."""
    out = Storage(str(tmp_path_factory.mktemp("transformer")))
    shards = pipeline.current("tokens", "tests").path
    return transformer.run(
        tiny_transformer_config(), tokens=shards, out=out, tracker=NullTracker()
    ).checkpoint


@pytest.fixture(scope="session")
def any_order(pipeline: Storage, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checkpoint of a transformer of any order."""
    config = of_order("any", tiny_transformer_config(30))
    out = Storage(str(tmp_path_factory.mktemp("any_order")))
    shards = pipeline.current("tokens", "tests").path
    return transformer.run(config, tokens=shards, out=out, tracker=NullTracker()).checkpoint


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "root"))


@pytest.fixture
def random_images() -> Callable[[int], list[Image.Image]]:
    def make(count: int) -> list[Image.Image]:
        rng = np.random.default_rng(0)
        values = rng.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
        return [Image.fromarray(value) for value in values]

    return make


PROGRAMS = {"make", "clipgen", ".venv/bin/clipgen", "dagster", "mlflow", "export", "curl", "pip", "python"}
PROGRAMS |= {"torchrun", "docker", "kubectl", "helm", "infra/compose/secrets.sh"}
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", flags=re.M | re.S)


def blocks(file: Path, language: str) -> list[str]:
    """The fenced blocks of code of one language in a Markdown file."""
    return [code for marked, code in FENCE.findall(file.read_text()) if marked == language]


def commands(file: Path) -> list[str]:
    """The commands in a Markdown file's fenced and indented blocks of code, without their comments."""
    indented = [line[4:] for line in file.read_text().splitlines() if line.startswith("    ")]
    lines = [*indented, *(line for block in blocks(file, "sh") for line in block.splitlines())]
    return [
        re.split(r"  +#", one)[0].rstrip() for one in lines if one.split()[:1] and one.split()[0] in PROGRAMS
    ]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that need a Ray cluster first, then the longest, then those with slow tests, so that workers end
    together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(
        key=lambda item: (not needs_ray(item.path), item.path.name not in LONGEST, item.path not in slow)
    )


@functools.cache
def needs_ray(file: Path) -> bool:
    """Whether a file's tests start a Ray cluster, of which a machine can have one at a time."""
    return re.search(r"\b(only_ray|ray_cluster)\b", file.read_text()) is not None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A worker takes a file at a time, and one worker all files that need Ray: else they would wait for each
    other's cluster."""
    from xdist.scheduler import LoadFileScheduling

    class RayTogether(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "ray" if needs_ray(config.rootpath / file) else file

    return RayTogether(config, log)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def answers(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(url, timeout=5).status == 200)
    except OSError:
        return False


def wait_for(
    found: Callable[[], Any],
    what: str,
    *,
    alive: Callable[[], bool] = lambda: True,
    seconds: float = 300,
    pause: float = 0.2,
) -> Any:
    """What `found` returns once that is something, while the process that makes it is `alive`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and alive():
        if result := found():
            return result
        time.sleep(pause)
    raise AssertionError(f"{what} did not come" + (f" within {seconds:.0f} s" if alive() else ""))


@pytest.fixture(scope="module")
def only_ray() -> Iterator[None]:
    """No other test of this machine has a Ray cluster meanwhile: `ray stop` would end it."""
    with (Path(tempfile.gettempdir()) / "clipgen-tests-ray.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="module")
def ray_cluster(only_ray: None) -> Iterator[str]:
    """The address of a head and a second node, a CPU each; RAY_ADDRESS names it."""
    with two_ray_nodes(head=["--include-dashboard=false"], second=[]) as address:
        yield address


@contextmanager
def two_ray_nodes(*, head: list[str], second: list[str], **environment: str) -> Iterator[str]:
    """A Ray cluster on loopback; each node is started with its options and the `environment`."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    environment |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_ADDRESS": address,
    }
    start = [str(RAY), "start", "--num-cpus=1", "--node-ip-address=127.0.0.1", "--disable-usage-stats"]
    start.append("--object-store-memory=100000000")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        try:
            first = [*start, "--head", f"--port={port}", *head]
            subprocess.run(first, check=True, capture_output=True, env=_without_address())
            subprocess.run([*start, f"--address={address}", *second], check=True, capture_output=True)
            yield address
        finally:
            subprocess.run([str(RAY), "stop", "--force"], check=False, capture_output=True)


def _without_address() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
