"""A root that was copied or moved reads and writes only itself, and nothing in it is made again."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from clipgen_core.data.embeddings import EmbeddingTable
from clipgen_core.data.tables import open_table
from clipgen_core.data.tokens import read_manifest
from clipgen_core.errors import ClipgenError
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.parts import read_parts
from clipgen_core.mlflow_tracker import MlflowTracker
from clipgen_core.models.clip import LOCAL
from clipgen_core.registry.champions import Registry
from clipgen_core.registry.lineage import lineage, way_back
from clipgen_core.stages import embeddings, evaluation, images, tokens, transformer, vqgan
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker, mlflow_client
from clipgen_core.training.checkpoint import Checkpoint
from tests.conftest import tiny_transformer_config, tiny_vqgan_config

TRACKER = NullTracker()


def state(root: Path) -> dict[str, tuple[int, int]]:
    """Every file, with its size and the time at which it was written."""
    files = (file for file in root.rglob("*") if file.is_file())
    return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in files}


@dataclass(frozen=True)
class Made:
    """Where a pipeline put its artefacts."""

    out: Storage
    clip: str
    shards: tokens.Result
    vqgan: vqgan.Result
    transformer: transformer.Result


def run(root: Path) -> Made:
    """All stages up to the transformer; those that are finished only say so. The CLIP lies under the root."""
    out, clip = Storage(str(root)), f"{LOCAL}{root}/clips/tiny"
    embedded = embeddings.run(embeddings.Config(), images=out.images, clip=clip, out=out, tracker=TRACKER)
    coded = vqgan.run(tiny_vqgan_config(2), images=out.images, clip=clip, out=out, tracker=TRACKER)
    shards = tokens.run(
        tokens.Config(),
        images=out.images,
        embeddings=embedded.table,
        vqgan=coded.checkpoint,
        out=out,
        tracker=TRACKER,
    )
    trained = transformer.run(tiny_transformer_config(4), tokens=shards.shards, out=out, tracker=TRACKER)
    return Made(out, clip, shards, coded, trained)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, pictures: Path, clip_reference: str) -> Made:
    """Tests must not write to it."""
    root = tmp_path_factory.mktemp("original") / "root"
    shutil.copytree(clip_reference.removeprefix(LOCAL), root / "clips" / "tiny")
    source = str(pictures / "pictures")
    images.run(images.Config(), source=source, out=Storage(str(root)), tracker=TRACKER)
    return run(root)


@pytest.fixture
def moved(original: Made, tmp_path: Path) -> Iterator[Path]:
    """A copy, while the original is away."""
    first, copy = Path(original.out.root), tmp_path / "another" / "root"
    shutil.copytree(first, copy)
    first.rename(first.with_name("away"))
    yield copy
    assert not first.exists(), "something was written where the original was"
    first.with_name("away").rename(first)


def test_a_moved_root_generates_evaluates_and_trains_on(original: Made, moved: Path, pictures: Path) -> None:
    out = Storage(str(moved))
    checkpoint = out.current("transformer", "tests").path
    assert checkpoint.startswith(f"{moved}/") and Checkpoint(checkpoint).state.step == 4
    generator = TextToImage.from_pretrained(checkpoint)
    assert generator.generate(["a red disc"])[0][0].size == (32, 32)
    assert generator.clip.reference == f"{LOCAL}{moved}/clips/tiny"
    report = evaluation.run(
        evaluation.Config(shown=("a red disc",), images_shown=1, scored=4, candidates=1, reconstructions=2),
        transformer=checkpoint,
        images=out.images,
        prompts=str(pictures / "prompts.csv"),
        out=out,
        tracker=TRACKER,
    )
    assert original.out.root not in Path(report.report).read_text()
    again = run(moved)
    assert (again.shards.digest, again.shards.encoded) == (original.shards.digest, 0)
    for one, before in ((again.vqgan, original.vqgan), (again.transformer, original.transformer)):
        assert one.digest == before.digest
        assert Path(one.checkpoint).relative_to(moved) == Path(before.checkpoint).relative_to(
            original.out.root
        )
    away = Path(original.out.root).with_name("away") / Path(checkpoint).relative_to(moved)
    shutil.rmtree(checkpoint)  # as if the training had been killed before its last checkpoint
    assert run(moved).transformer.checkpoint == checkpoint
    trained_on, whole = Checkpoint(checkpoint).weights(), Checkpoint(str(away)).weights()
    assert all(torch.equal(trained_on[name], whole[name]) for name in whole)
    for folder in ("checkpoints/transformer", "checkpoints/vqgan", "tokens", "codes", "embeddings"):
        assert len(list((moved / folder).iterdir())) == 1, "nothing was made again"


def test_a_copy_neither_tags_nor_changes_the_original(original: Made, tmp_path: Path) -> None:
    before = state(Path(original.out.root))
    shutil.copytree(original.out.root, tmp_path / "copy")
    copy = run(tmp_path / "copy")
    further = tiny_transformer_config(2).model_copy(update={"start_from": "latest"})
    started = transformer.run(further, tokens=copy.shards.shards, out=copy.out, tracker=TRACKER)
    assert started.started_from == copy.transformer.checkpoint
    assert state(Path(original.out.root)) == before
    tags = open_table(copy.out.current("embeddings", "tests").path).tags.list()
    assert f"transformer-{started.digest}" in tags


def test_records_name_no_place(original: Made) -> None:
    root = Path(original.out.root)
    records = [*root.rglob("manifest.json"), *root.rglob("step-*/config.json")]
    assert len(records) >= 3
    assert not [file for file in records if str(root) in file.read_text()]
    table = open_table(original.out.current("embeddings", "tests").path)
    assert str(root) not in str(table.schema.metadata) and EmbeddingTable(table.uri).clip == original.clip
    manifest = read_manifest(original.shards.shards)
    assert (manifest.images, manifest.clip) == (original.out.images, original.clip)


def test_a_root_is_read_through_a_relative_path(original: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(original.out.root)
    relative = str(Path(original.transformer.checkpoint).relative_to(original.out.root))
    assert read_parts(relative).vqgan == original.vqgan.checkpoint


def test_a_pointer_of_an_earlier_version_means_what_it_meant(original: Made, storage: Storage) -> None:
    pointer = {"path": original.shards.shards, "digest": original.shards.digest}
    Path(storage.path("current")).mkdir(parents=True)
    Path(storage.path("current", "tokens.json")).write_text(json.dumps(pointer))
    assert storage.current("tokens", "tests").path == original.shards.shards


def test_what_was_taken_out_of_its_root_says_what_it_lacks(original: Made, tmp_path: Path) -> None:
    alone = shutil.copytree(original.transformer.checkpoint, tmp_path / "alone")
    lacks = r"taken out of its root, where checkpoints/vqgan/\w+/step-00000002 is, which it needs: give its"
    with pytest.raises(ClipgenError, match=f"alone was {lacks}"):
        read_parts(str(alone))
    shards = str(shutil.copytree(original.shards.shards, tmp_path / "shards"))
    with pytest.raises(ClipgenError, match=f"shards was {lacks}"):
        transformer.run(
            tiny_transformer_config(4), tokens=shards, out=Storage(str(tmp_path)), tracker=TRACKER
        )


def test_a_generator_folder_needs_no_root(original: Made, moved: Path, tmp_path: Path) -> None:
    generator = TextToImage.from_pretrained(Storage(str(moved)).current("transformer", "tests").path)
    generator.save_pretrained(tmp_path / "generator")
    generator.save_pretrained(tmp_path / "generator")  # it has the same parts already
    shutil.rmtree(moved)
    assert TextToImage.from_pretrained(str(tmp_path / "generator")).generate(["a red disc"])


def test_the_registry_knows_a_model_of_a_moved_root(original: Made, moved: Path, tmp_path: Path) -> None:
    client = mlflow_client(f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    checkpoint = Storage(str(moved)).current("transformer", "tests").path
    here = lineage(read_parts(checkpoint))
    tags = {name: value.replace(str(moved), original.out.root) for name, value in here.items()}
    client.create_registered_model("clip-gen")
    client.create_model_version("clip-gen", source="file:///nothing", tags=tags)
    registry = Registry(client, Storage(str(moved)))
    assert registry.register(checkpoint, MlflowTracker(client, "none")) == "1"
    assert [step.there for step in way_back(tags)] == [False] * 5
    assert [(step.there, step.where) for step in way_back(tags, str(moved))] == [
        (True, step.where) for step in way_back(here)
    ]
