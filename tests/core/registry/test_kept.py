import json
import os
import random
import shutil
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from clipgen_core.cli import app
from clipgen_core.data.forget import forget_ids
from clipgen_core.data.tables import column, open_table
from clipgen_core.data.upkeep import compact, tables, tags_of
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.parts import read_parts
from clipgen_core.registry import kept
from clipgen_core.registry.lineage import lineage
from clipgen_core.stages import duplicates, embeddings, images, tokens, transformer
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker, mlflow_client
from tests.conftest import PROCESSES, tiny_transformer_config

TRACKER = NullTracker()


@pytest.fixture(scope="module")
def trained(pipeline: Storage, tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """A root with near-duplicates, a transformer, and a report that names an image."""
    root = tmp_path_factory.mktemp("trained") / "root"
    shutil.copytree(pipeline.root, root)
    out = Storage(str(root))
    embedded = out.current("embeddings", "tests").path
    duplicates.run(duplicates.Config(), embeddings=embedded, out=out, tracker=TRACKER)
    shards = out.current("tokens", "tests").path
    transformer.run(tiny_transformer_config(2), tokens=shards, out=out, tracker=TRACKER)
    image_id = forgotten(out)
    for name, near in (("shows", {"id": image_id}), ("other", None)):
        (root / "reports" / name).mkdir(parents=True)
        prompts = [{"prompt": "a disc", "nearest_training_picture": near}]
        (root / "reports" / name / "prompts.json").write_text(json.dumps(prompts))
    return out


@pytest.fixture
def out(trained: Storage, tmp_path: Path) -> Storage:
    shutil.copytree(trained.root, tmp_path / "root")
    return Storage(str(tmp_path / "root"))


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A registry that has the root's transformer, and a model of another root."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return mlflow_client(uri)


def forgotten(out: Storage) -> str:
    return min(column(out.images, "id"))


def holding(out: Storage, *texts: bytes) -> list[str]:
    """The files under the root that hold a text."""
    files = [file for file in Path(out.root).rglob("*") if file.is_file()]
    return [str(file) for file in files if any(text in file.read_bytes() for text in texts)]


def bytes_of(out: Storage, image_id: str) -> bytes:
    row = open_table(out.images).to_table(columns=["image"], filter=f"id = '{image_id}'")
    return bytes(row["image"].to_pylist()[0])


def register(client: Any, name: str, **tags: str) -> None:
    client.create_registered_model(name)
    client.create_model_version(name, source="file:///none", tags=tags)


def upkeep(out: Storage) -> None:
    for url in tables(out):
        compact(url, timedelta(0))


def test_no_file_holds_an_image_after_a_purge(out: Storage, client: Any) -> None:
    image_id, checkpoint = forgotten(out), out.current("transformer", "tests").path
    data, shards = bytes_of(out, image_id), out.current("tokens", "tests").path
    register(client, "mine", **lineage(read_parts(checkpoint)))
    register(client, "theirs", transformer="/other/checkpoints/transformer/x/step-1")
    said = CliRunner().invoke(app, ["forget", image_id, "--root", out.root, "--purge"])
    told = " ".join(said.output.split())
    assert said.exit_code == 0 and "1 images would be removed; repeat with --yes" in told
    assert "mine version 1 saw them" in told and "theirs" not in told
    assert f"tokens/{Path(shards).name} lets go of them" in told and "reports/shows lets go" in told
    assert "the tag transformer-" in told and "the tag tokens-" in told and Path(shards).exists()
    done = CliRunner().invoke(app, ["forget", image_id, "--root", out.root, "--purge", "--yes"])
    assert done.exit_code == 0 and "1 images are removed" in done.output
    upkeep(out)
    assert holding(out, image_id.encode(), data) == []
    assert (Path(out.root) / "reports" / "other").exists() and not Path(shards).exists()
    made = TextToImage.from_pretrained(checkpoint).generate(["a disc"], candidates=1)
    assert made[0][0].size == (32, 32)
    assert kept.models(out, client, [image_id]) == {"mine version 1": False}
    for more in ([], ["--purge"]):
        again = CliRunner().invoke(app, ["forget", image_id, "--root", out.root, *more])
        assert again.exit_code == 2 and f"name no image under {out.root}" in again.output


def test_what_was_forgotten_by_its_id_can_be_purged_later(out: Storage, client: Any) -> None:
    forget, image_id = ["forget", forgotten(out), "--root", out.root], forgotten(out)
    assert CliRunner().invoke(app, [*forget, "--yes"]).exit_code == 0
    done = CliRunner().invoke(app, [*forget, "--purge", "--yes"])
    assert done.exit_code == 0 and "lets go of them" in done.output
    assert kept.find(out, [image_id]).names == []


def test_without_a_purge_what_models_were_trained_on_keeps_the_image(out: Storage, client: Any) -> None:
    image_id = forgotten(out)
    data = bytes_of(out, image_id)
    uri = open_table(out.images).to_table(columns=["uri"], filter=f"id = '{image_id}'")["uri"][0].as_py()
    done = CliRunner().invoke(app, ["forget", uri, "--root", out.root, "--yes"])
    told = " ".join(done.output.split())
    assert "1 images are removed" in told and "reports/shows keeps them" in told and "--purge" in told
    upkeep(out)
    assert holding(out, data) == []  # the images table has no tags
    left = {Path(file).relative_to(out.root).parts[0] for file in holding(out, image_id.encode())}
    assert left == {"embeddings", "tokens", "reports"}


def test_the_next_runs_make_what_was_let_go_again(out: Storage, pictures: Path, clip_reference: str) -> None:
    image_id = forgotten(out)
    kept.let_go(out, kept.find(out, [image_id]))
    forget_ids(out, [image_id])
    upkeep(out)
    taken = images.run(images.Config(), source=str(pictures / "pictures"), out=out, tracker=TRACKER)
    embedded = embeddings.run(
        embeddings.Config(), images=taken.table, clip=clip_reference, out=out, tracker=TRACKER
    )
    vqgan = out.current("vqgan", "tests").path
    made = tokens.run(
        tokens.Config(views=2, exclude_duplicates=0.9999),
        images=taken.table,
        embeddings=embedded.table,
        vqgan=vqgan,
        out=out,
        tracker=TRACKER,
    )
    assert taken.total == 71 and made.encoded == 0 and made.total == 71
    transformer.run(tiny_transformer_config(2), tokens=made.shards, out=out, tracker=TRACKER)
    assert kept.find(out, [image_id]).names == []


def test_no_mlflow_is_said_and_stops_nothing(
    out: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["forget", forgotten(out), "--root", out.root, "--yes"])
    assert done.exit_code == 0 and "which registered models saw them is not known" in done.output
    assert "1 images are removed" in done.output


def purge(root: str, image_id: str) -> None:
    out = Storage(root)
    kept.let_go(out, kept.find(out, [image_id]))
    forget_ids(out, [image_id])


@pytest.mark.slow
def test_a_purge_that_is_killed_is_finished_by_the_next(trained: Storage, tmp_path: Path) -> None:
    image_id, rng, killed, seconds = forgotten(trained), random.Random(0), 0, 0.0
    server = PROCESSES.Process(target=time.sleep, args=(0,))
    server.start()  # the first process of a test run waits for the server that forks it
    server.join()
    for trial in range(12):
        out = Storage(str(tmp_path / f"{trial}"))
        shutil.copytree(trained.root, out.root)
        process, began = PROCESSES.Process(target=purge, args=(out.root, image_id)), time.monotonic()
        process.start()
        process.join(rng.uniform(0, seconds) if trial else None)
        assert trial or process.exitcode == 0
        seconds = seconds or time.monotonic() - began  # of the first, which is not disturbed
        if process.is_alive():
            os.kill(process.pid or 0, signal.SIGKILL)
            killed += 1
        process.join()
        purge(out.root, image_id)
        upkeep(out)
        assert holding(out, image_id.encode()) == []
        assert all(not tags_of(url) for url in tables(out) if url.startswith(out.path("embeddings")))
        shutil.rmtree(out.root)
    assert killed > 3
