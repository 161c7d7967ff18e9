"""The stages on a real S3 protocol: pictures and artefacts on s3://, over HTTP, also when it misbehaves."""

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import s3fs

from clipgen_core.data.remote import Reader
from clipgen_core.data.sources import Source
from clipgen_core.data.tables import column, open_table, vectors
from clipgen_core.filesystem import exists, stamp
from clipgen_core.generation.generator import TextToImage
from clipgen_core.stages import embeddings, evaluation, images, tokens, transformer, vqgan
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker
from tests.conftest import tiny_transformer_config, tiny_vqgan_config
from tests.integration.faults import FaultyProxy
from tests.integration.servers import s3

SECRET = "verysecretkeythatmustnotshow"
TRACKER = NullTracker()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """A store that the environment names, as it would in production: (host, port)."""
    with s3() as (host, port):
        use(monkeypatch, f"http://{host}:{port}")
        boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="clipgen")
        yield host, port
    s3fs.S3FileSystem.clear_instance_cache()


def use(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    values = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()


def upload(pictures: Path, prefix: str) -> str:
    store = s3fs.S3FileSystem()
    store.put(str(pictures / "pictures") + "/", f"clipgen/{prefix}/", recursive=True)
    return f"s3://clipgen/{prefix}"


def tables(source: str, root: str, clip: str, vqgan_checkpoint: str) -> Storage:
    """Take in, embed, tokenise."""
    out = Storage(root)
    config = images.Config(batch_size=20)
    taken = images.run(config, source=source, out=out, tracker=TRACKER)
    embedded = embeddings.run(
        embeddings.Config(batch_size=16, block_size=16),
        images=taken.table,
        clip=clip,
        out=out,
        tracker=TRACKER,
    )
    tokens.run(
        tokens.Config(block_size=16, rows_per_part=16),
        images=taken.table,
        embeddings=embedded.table,
        vqgan=vqgan_checkpoint,
        out=out,
        tracker=TRACKER,
    )
    return out


@pytest.mark.slow
def test_the_whole_pipeline_with_everything_on_s3(
    store: tuple[str, int],
    pictures: Path,
    clip_reference: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    source, out = upload(pictures, "photos"), Storage("s3://clipgen/root")
    taken = images.run(images.Config(), source=source, out=out, tracker=TRACKER)
    assert taken.total == 72
    assert images.run(images.Config(), source=source, out=out, tracker=TRACKER).added == 0
    embedded = embeddings.run(
        embeddings.Config(), images=taken.table, clip=clip_reference, out=out, tracker=TRACKER
    )
    coded = vqgan.run(tiny_vqgan_config(), images=taken.table, clip=clip_reference, out=out, tracker=TRACKER)
    shards = tokens.run(
        tokens.Config(),
        images=taken.table,
        embeddings=embedded.table,
        vqgan=coded.checkpoint,
        out=out,
        tracker=TRACKER,
    )
    trained = transformer.run(tiny_transformer_config(), tokens=shards.shards, out=out, tracker=TRACKER)
    report = evaluation.run(
        evaluation.Config(shown=("a red disc",), images_shown=1, scored=4, candidates=1, reconstructions=2),
        transformer=trained.checkpoint,
        images=taken.table,
        prompts=str(pictures / "prompts.csv"),
        out=out,
        tracker=TRACKER,
    )
    assert report.report.startswith("s3://clipgen/root/reports/") and exists(report.report)
    assert TextToImage.from_pretrained(trained.checkpoint).generate(["a red disc"])[0][0].size == (32, 32)
    spoken = caplog.text + "".join(capfd.readouterr())
    assert SECRET not in spoken
    assert not any(SECRET.encode() in body for body in everything_stored())


@pytest.mark.slow
def test_a_local_root_is_copied_to_a_bucket(
    store: tuple[str, int], pipeline: Storage, tmp_path: Path
) -> None:
    local = Storage(str(shutil.copytree(pipeline.root, tmp_path / "root")))
    shards = local.current("tokens", "tests").path
    transformer.run(tiny_transformer_config(2), tokens=shards, out=local, tracker=TRACKER)
    s3fs.S3FileSystem().put(f"{local.root}/", "clipgen/copied/", recursive=True)
    shutil.rmtree(local.root)
    out = Storage("s3://clipgen/copied")
    generator = TextToImage.from_pretrained(out.current("transformer", "tests").path)
    assert generator.parts.embeddings == out.current("embeddings", "tests").path
    assert generator.generate(["a red disc"])[0][0].size == (32, 32)
    again = out.current("tokens", "tests").path
    trained = transformer.run(tiny_transformer_config(2), tokens=again, out=out, tracker=TRACKER)
    assert trained.checkpoint == generator.parts.transformer, "it is found again, and finished"


def everything_stored() -> Iterator[bytes]:
    store = s3fs.S3FileSystem()
    for path in store.find("clipgen/root"):
        yield store.cat_file(path)


@pytest.mark.slow
def test_a_store_that_misbehaves_changes_nothing(
    store: tuple[str, int],
    pictures: Path,
    pipeline: Storage,
    clip_reference: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = upload(pictures, "more")
    checkpoint = pipeline.current("vqgan", "tests").path
    calm = contents(tables(source, "s3://clipgen/calm", clip_reference, checkpoint))
    proxy = FaultyProxy(store)
    use(monkeypatch, proxy.url)
    try:
        rough = contents(tables(source, "s3://clipgen/rough", clip_reference, checkpoint))
    finally:
        proxy.close()
    assert rough == calm and len(calm["images"]) == 72
    assert set(proxy.met) == {"reset", "slow_down", "slow", "truncated"}, proxy.met
    assert sum(proxy.met.values()) > 30


def contents(out: Storage) -> dict[str, object]:
    embedded = open_table(out.current("embeddings", "tests").path).to_table()
    rows = zip(embedded["id"].to_pylist(), vectors(embedded).round(1).tolist(), strict=True)
    return {
        "images": sorted(column(out.images, "id")),
        "files": sorted(column(out.files, "uri")),
        "embeddings": sorted(rows),
        "shards": out.current("tokens", "tests").digest,
    }


def test_the_environment_is_where_credentials_come_from(store: tuple[str, int]) -> None:
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == SECRET
    assert Storage("s3://clipgen/root").root == "s3://clipgen/root"


def test_keys_with_empty_and_foreign_names_are_listed_and_read(
    store: tuple[str, int], pictures: Path
) -> None:
    data = next((pictures / "pictures").glob("*/*.png")).read_bytes()
    client = boto3.client("s3", endpoint_url="http://{}:{}".format(*store))
    keys = (
        "in/4.png",
        "in//5.png",
        "in/a/1.png",
        "in/a//2.png",
        "in/a//deep/3.png",
        "in/b/Ü x.png",
        "in/b/no_ending",
    )
    for key in keys:
        client.put_object(Bucket="clipgen", Key=key, Body=data)
    client.put_object(Bucket="clipgen", Key="in/b/labels.json", Body=b"{}")
    client.put_object(Bucket="clipgen", Key="in/b/_SUCCESS", Body=b"")
    opened = Source("s3://clipgen/in")
    assert opened.folders() == ["", "a", "b"]
    items = [item for file in opened.files() for item in opened.items(file)]
    assert sorted(item.uri for item in items) == sorted(f"s3://clipgen/{key}" for key in keys)
    assert {item.data for item in items} == {data}


def test_each_key_is_read_as_itself_and_what_is_gone_or_refused_is_said(store: tuple[str, int]) -> None:
    client = boto3.client("s3", endpoint_url="http://{}:{}".format(*store))
    keys = ["x/a.png", "x/a.png/", "x//a.png", "/x/a.png", "x/a%2Fb.png", "x/a b+c#?.png", "x/ü\\.png", "x/e"]
    for key in keys:
        client.put_object(Bucket="clipgen", Key=key, Body=b"" if key == "x/e" else key.encode() * 99)
    filesystem = s3fs.S3FileSystem()
    reader = Reader(filesystem, "clipgen/x")
    for key in keys:
        assert reader.read(f"clipgen/{key}") == (b"" if key == "x/e" else key.encode() * 99)
    assert reader.read("clipgen/x/a.png", end=4) == b"x/a."
    with pytest.raises(FileNotFoundError):
        reader.read("clipgen/x/gone.png")
    client.put_object(Bucket="clipgen", Key="y/a.png", Body=b"1")
    client.put_object(Bucket="clipgen", Key="y/", Body=b"")
    client.put_object(Bucket="clipgen", Key="y/z/b.png", Body=b"2")
    listed = {entry["name"]: (entry["type"], stamp(entry, 1)) for entry in reader.ls("clipgen/y")}
    for entry in filesystem.ls("clipgen/y", detail=True):
        if entry["name"].rstrip("/") != "clipgen/y":
            assert listed.pop(entry["name"]) == (entry["type"], stamp(entry, 1)) or entry["type"] != "file"
    assert not listed
