import errno
import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import fsspec
import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer
from PIL import Image

from clipgen_core.data import referenced
from clipgen_core.data.fill import Filling
from clipgen_core.data.forget import forget_ids
from clipgen_core.data.images import ImageTable, images_by_id, preview, shown_by_id
from clipgen_core.data.overview import overview
from clipgen_core.data.pixels import png_bytes
from clipgen_core.data.prune import Pruned, prune
from clipgen_core.data.referenced import take_images
from clipgen_core.errors import ClipgenError
from clipgen_core.stages import embeddings, images, tokens
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker
from tests.conftest import COLOURS, draw
from tests.core.data.test_sources import write_tar

PNG = {colour: png_bytes(draw(colour, "disc")) for colour in COLOURS}
RED, GREEN, BLUE = (PNG[colour] for colour in ("red", "green", "blue"))


def ingest(source: Path | str, storage: Storage, **config: object) -> images.Result:
    chosen = images.Config.model_validate({"store": "references"} | config)
    return images.run(chosen, source=str(source), out=storage, tracker=NullTracker())


def embed(storage: Storage, clip: str) -> int:
    return embeddings.run(
        embeddings.Config(batch_size=2), images=storage.images, clip=clip, out=storage, tracker=NullTracker()
    ).total


def rows(storage: Storage) -> dict[str, dict[str, object]]:
    """The rows of the images table by the last part of their URIs."""
    every = lance.dataset(storage.images).to_table().to_pylist()
    return {row["uri"].rpartition("/")[2]: row for row in every}


def read(storage: Storage) -> list[bytes]:
    """The bytes of all images, as the stages get them."""
    table = lance.dataset(storage.images)
    found = take_images(table, range(table.count_rows()))
    assert not found.gone
    return sorted(found.rows["image"].to_pylist())


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_a_folder_is_referenced_and_gives_the_same_images(storage: Storage, tmp_path: Path) -> None:
    source = write(tmp_path / "in", {"a/ü #1.png": RED, "b::c/2.png": GREEN, "3.png": BLUE})
    taken = ingest(source, storage)
    assert taken.total == 3 and read(storage) == sorted([RED, GREEN, BLUE])
    row = rows(storage)["ü #1.png"]
    stamp = f"{len(RED)}-{(source / 'a/ü #1.png').stat().st_mtime_ns}"
    reference = {"file": f"file://{source}/a/ü #1.png", "offset": 0, "length": len(RED), "stamp": stamp}
    assert row["image"] == b"" and row["reference"] == reference
    seen = overview(storage)
    assert (seen.referenced, seen.source_bytes) == (3, len(RED) + len(GREEN) + len(BLUE))
    assert [column.name for column in seen.columns] == ["caption", "license", "url", "score", "label"]
    stored = Storage(str(tmp_path / "stored"))
    same = ingest(source, stored, store="images")
    assert same.digest == taken.digest and overview(stored).referenced == 0


def test_members_of_plain_archives_are_referenced(storage: Storage, tmp_path: Path) -> None:
    inner = tmp_path / "inner.tar"
    write_tar(inner, {"x.png": PNG["black"], "x.txt": b"a disc"})
    folder = write(tmp_path / "in", {})
    folder.mkdir()
    long = "long/" * 40 + "1.png"
    write_tar(
        folder / "0.tar", {long: RED, "2.txt": b"no image", "2.png": GREEN, "in.tar": inner.read_bytes()}
    )
    with zipfile.ZipFile(folder / "1.zip", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("readme.md", "images")
        archive.writestr("ä/3.png", BLUE)
        archive.write(write(tmp_path, {"4.png": PNG["purple"]}) / "4.png", "4.png")
    ingest(folder, storage)
    assert read(storage) == sorted([RED, GREEN, BLUE, PNG["black"], PNG["purple"]])
    assert all(row["image"] == b"" for row in rows(storage).values())
    assert rows(storage)["x.png"]["caption"] == "a disc"
    assert rows(storage)["x.png"]["reference"]["file"] == f"file://{folder}/0.tar"  # type: ignore[index]


@pytest.mark.parametrize("kind", ["tar.gz", "zip", "parquet", "tar"])
def test_what_cannot_be_referenced_is_refused(kind: str, storage: Storage, tmp_path: Path) -> None:
    folder, file = tmp_path / "in", tmp_path / "in" / f"0.{kind}"
    folder.mkdir()
    if kind == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("1.png", RED)
    elif kind == "parquet":
        pq.write_table(pa.table({"image": [RED]}), file)
    else:  # a compressed one, or one in a plain one
        with tarfile.open(tmp_path / "1.tar.gz", "w:gz") as packed:
            packed.add(write(tmp_path, {"1.png": RED}) / "1.png", "1.png")
        data = (tmp_path / "1.tar.gz").read_bytes()
        write(folder, {"0.tar.gz": data}) if kind == "tar.gz" else write_tar(file, {"1.tar.gz": data})
    with pytest.raises(
        ClipgenError, match=rf"0\.{kind}#?\S* cannot be referenced.*set images\.store to images"
    ):
        ingest(folder, storage)
    assert ingest(folder, storage, store="images").total == 1


def test_images_that_need_settings_or_extras_are_stored(storage: Storage, tmp_path: Path) -> None:
    deep = io.BytesIO()
    Image.new("I;16", (40, 30), 900).save(deep, "TIFF")
    ingest(write(tmp_path / "in", {"a.tif": deep.getvalue(), "b.png": RED}), storage, scale_range=(0, 1000))
    assert rows(storage)["a.tif"]["reference"] is None and rows(storage)["b.png"]["image"] == b""
    assert Image.open(io.BytesIO(rows(storage)["a.tif"]["image"])).getpixel((0, 0)) == (230,) * 3  # type: ignore[arg-type]


def test_longest_side_and_references_exclude_each_other() -> None:
    with pytest.raises(ClipgenError, match="set one of them"):
        images.Config(store="references", longest_side=64)


NAMES = st.binary(min_size=1, max_size=40).filter(lambda name: name[:1] != b"." and not {47, 0} & {*name})


@settings(max_examples=30, deadline=None)
@given(name=NAMES, pad=st.binary(max_size=700), tar=st.booleans())
def test_any_name_comes_back(
    name: bytes, pad: bytes, tar: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("names")
    text = os.fsdecode(name)
    inner = folder / "in" / text
    inner.mkdir(parents=True)
    if tar:
        write_tar(inner / "0.tar", {"pad.bin": pad, f"{text}.png": RED, "2.png": GREEN})
    else:
        write(inner, {f"{text}.png": RED, "2.png": GREEN})
    storage = Storage(str(folder / "root"))
    ingest(folder / "in", storage)
    assert read(storage) == sorted([RED, GREEN])


def test_a_file_that_changed_or_left_is_set_aside_and_read_again_when_it_is_there(
    clip_reference: str, storage: Storage, tmp_path: Path
) -> None:
    source = write(tmp_path / "in", {"a.png": RED, "b.png": BLUE, "c.png": GREEN})
    ingest(source, storage)
    before = rows(storage)
    write(source, {"b.png": PNG["purple"]})
    (source / "c.png").unlink()
    assert embed(storage, clip_reference) == 1 and rows(storage).keys() == {"a.png"}
    rejects = {row["uri"][-5:]: row for row in lance.dataset(storage.rejects).to_table().to_pylist()}
    assert {row["reason"] for row in rejects.values()} == {"unreadable"}
    assert "has changed since it was read" in rejects["b.png"]["detail"]
    assert all(str(before[name]["id"]) in rejects[name]["detail"] for name in ("b.png", "c.png"))
    assert ingest(source, storage).total == 2 and read(storage) == sorted([RED, PNG["purple"]])
    write(source, {"c.png": GREEN})
    assert ingest(source, storage).rejects == {} and embed(storage, clip_reference) == 3


def test_the_same_size_and_time_do_not_hide_other_bytes(storage: Storage, tmp_path: Path) -> None:
    source = write(tmp_path / "in", {f"{i}.png": PNG[colour] for i, colour in enumerate(COLOURS)})
    ingest(source, storage)
    state = (source / "0.png").stat()
    (source / "0.png").write_bytes(bytes(len(PNG[COLOURS[0]])))
    os.utime(source / "0.png", ns=(state.st_atime_ns, state.st_mtime_ns))
    table = ImageTable(storage.images)
    assert table.keys.size == len(COLOURS)
    with pytest.raises(
        ClipgenError, match=r"^1 image of .* read again: .*0\.png: it has changed.*clipgen forget"
    ):
        table.images(np.arange(len(COLOURS)))


def test_an_image_that_lies_elsewhere_too_is_read_there(
    clip_reference: str, storage: Storage, tmp_path: Path
) -> None:
    source = write(tmp_path / "in", {"a/1.png": RED, "a/2.png": BLUE, "b/3.png": GREEN})
    write_tar(source / "b" / "0.tar", {"red.png": RED})
    ingest(source, storage)
    (source / "a" / "1.png").unlink()
    assert embed(storage, clip_reference) == 3
    moved = rows(storage)["0.tar#red.png"]
    assert moved["folder"] == "b" and read(storage) == sorted([RED, BLUE, GREEN])


def test_a_source_that_moved_is_followed(storage: Storage, tmp_path: Path) -> None:
    source = write(tmp_path / "in", {"a/1.png": RED, "b/2.png": BLUE})
    ingest(source, storage)
    shutil.copytree(source, tmp_path / "copy")
    ingest(tmp_path / "copy", storage)
    assert {row["uri"] for row in rows(storage).values()} == {
        f"file://{source}/a/1.png",
        f"file://{source}/b/2.png",
    }
    source.rename(tmp_path / "new")
    taken = ingest(tmp_path / "new", storage)
    assert (taken.added, taken.total) == (0, 2) and read(storage) == sorted([RED, BLUE])
    assert {row["reference"]["file"] for row in rows(storage).values()} == {
        f"file://{tmp_path}/new/a/1.png",
        f"file://{tmp_path}/new/b/2.png",
    }


@pytest.mark.parametrize("what", ["gone", "empty", "fault"])
def test_a_source_that_is_not_there_stops_the_run_and_loses_nothing(
    what: str, clip_reference: str, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "in", {"a.png": RED, "b.png": BLUE})
    ingest(source, storage)
    if what == "fault":
        monkeypatch.setattr("clipgen_core.filesystem.ATTEMPTS", 1)
        fault = OSError(errno.ESTALE, "stale file handle")
        monkeypatch.setattr(referenced.Reader, "read", lambda *_: (_ for _ in ()).throw(fault))
    else:
        source.rename(tmp_path / "elsewhere")
        if what == "empty":  # a mount point
            source.mkdir()
    with pytest.raises(ClipgenError, match="cannot be read again"):
        embed(storage, clip_reference)
    table = lance.dataset(storage.images)
    assert shown_by_id(table, table.to_table(columns=["id"])["id"].to_pylist()) == {}
    assert rows(storage).keys() == {"a.png", "b.png"} and not lance.dataset(storage.rejects).count_rows()


def test_an_image_of_a_folder_that_was_removed_becomes_a_reject(
    clip_reference: str, storage: Storage, tmp_path: Path
) -> None:
    source = write(tmp_path / "in", {"a/deep/1.png": RED, "a/2.png": BLUE, "b/3.png": GREEN})
    ingest(source, storage)
    shutil.rmtree(source / "a" / "deep")
    assert embed(storage, clip_reference) == 2 and rows(storage).keys() == {"2.png", "3.png"}
    (reject,) = lance.dataset(storage.rejects).to_table().to_pylist()
    assert reject["uri"].endswith("a/deep/1.png") and reject["reason"] == "unreadable"


def test_images_of_a_folder_that_may_not_be_mounted_are_kept(
    clip_reference: str, storage: Storage, tmp_path: Path
) -> None:
    source = write(tmp_path / "in", {"a/deep/1.png": RED, "a/2.png": BLUE, "b/3.png": GREEN})
    ingest(source, storage)
    shutil.rmtree(source / "a")
    for _ in ("gone", "empty"):
        with pytest.raises(
            ClipgenError,
            match="nor any file beside it: .* `clipgen forget --root ROOT --under file:///.*/in/a`",
        ):
            embed(storage, clip_reference)
        (source / "a").mkdir(exist_ok=True)
    assert len(rows(storage)) == 3


def test_members_of_a_rewritten_archive_are_found_at_their_new_place(
    storage: Storage, tmp_path: Path
) -> None:
    source = write(tmp_path / "in", {"1.png": GREEN})
    write_tar(source / "0.tar", {"a.png": RED, "b.png": BLUE})
    ingest(source, storage)
    write_tar(source / "0.tar", {"new.bin": bytes(5000), "a.png": RED, "b.png": BLUE})
    table = lance.dataset(storage.images)
    assert len(take_images(table, range(3)).gone) == 2
    assert len(images_by_id(table, table.to_table(columns=["id"])["id"].to_pylist())) == 1
    assert preview(storage.images) is not None
    taken = ingest(source, storage)
    assert (taken.added, taken.replaced) == (0, 0) and read(storage) == sorted([RED, GREEN, BLUE])


def test_a_place_that_came_meanwhile_is_read(clip_reference: str, storage: Storage, tmp_path: Path) -> None:
    source = write(tmp_path / "in", {"1.png": GREEN})
    write_tar(source / "0.tar", {"a.png": RED})
    ingest(source, storage)
    version = lance.dataset(storage.images).version
    write_tar(source / "0.tar", {"new.bin": bytes(5000), "a.png": RED})
    ingest(source, storage)
    worker = embeddings.Embedder(clip_reference, clip_reference)
    filling = Filling(storage.images, version, str(tmp_path / "e.lance"), 8, 8, out=storage)
    assert filling.block(worker, np.arange(2)) == 2
    assert lance.dataset(filling.target).count_rows() == 2 == len(rows(storage))


def test_stored_and_referenced_images_live_in_one_table(
    clip_reference: str, storage: Storage, tmp_path: Path
) -> None:
    source = write(tmp_path / "in", {"a.png": RED})
    ingest(source, storage, store="images")
    write(source, {"b.png": BLUE, "c/a.png": RED})
    ingest(source, storage)
    assert [bool(rows(storage)[name]["image"]) for name in ("a.png", "b.png")] == [True, False]
    assert read(storage) == sorted([RED, BLUE]) and embed(storage, clip_reference) == 2
    write(source, {"d/b.png": BLUE, "e.png": GREEN})
    ingest(source, storage, store="images")  # a copy that comes with its bytes stores them
    assert overview(storage).referenced == 0 and read(storage) == sorted([RED, BLUE, GREEN])


def test_a_referenced_image_is_forgotten_and_a_folder_pruned(
    clip_reference: str, storage: Storage, tmp_path: Path
) -> None:
    source = write(tmp_path / "in", {"a/1.png": RED, "a/2.png": BLUE, "b/3.png": RED, "b/4.png": GREEN})
    ingest(source, storage)
    embed(storage, clip_reference)
    forget_ids(storage, [str(rows(storage)["4.png"]["id"])])
    assert read(storage) == sorted([RED, BLUE]) and (source / "b" / "4.png").exists()
    assert prune(storage, "a", dry_run=False) == Pruned(images=1, moved=1)
    shutil.rmtree(source / "a")
    assert rows(storage).keys() == {"3.png"} and read(storage) == [RED]
    assert embed(storage, clip_reference) == 1 and ingest(source, storage).total == 1


def test_an_image_that_left_before_it_was_encoded_is_in_no_shard(
    pipeline: Storage, clip_reference: str, pictures: Path, storage: Storage, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    shutil.copytree(pictures / "pictures" / "disc", source)
    total = ingest(source, storage).total
    embed(storage, clip_reference)
    gone = next(source.glob("*.png"))
    gone.unlink()
    shards = tokens.run(
        tokens.Config(views=1),
        images=storage.images,
        embeddings=storage.current("embeddings", "tests").path,
        vqgan=pipeline.current("vqgan", "tests").path,
        out=storage,
        tracker=NullTracker(),
    )
    assert shards.manifest.rows == shards.selected == total - 1
    (reject,) = lance.dataset(storage.rejects).to_table().to_pylist()
    assert reject["file"] == f"file://{gone}" and reject["reason"] == "unreadable"
    embedded = storage.current("embeddings", "tests").path
    assert lance.dataset(embedded).count_rows() == total - 1 == len(rows(storage))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, bytes | None], object]]:
    """Puts an object into `s3://photos`, or removes one."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # of a test with other credentials
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    named = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in ({"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret"} | named).items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="photos")

    def put(key: str, data: bytes | None) -> object:
        if data is None:
            return client.delete_object(Bucket="photos", Key=key)
        return client.put_object(Bucket="photos", Key=key, Body=data)

    yield put
    server.stop()
    referenced._reader.cache_clear()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_a_bucket_is_read_by_ranges(
    bucket: Callable[[str, bytes | None], object],
    storage: Storage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_tar(tmp_path / "0.tar", {"red.png": RED, "blue.png": BLUE})
    shard = (tmp_path / "0.tar").read_bytes()
    bucket("in/0.tar", shard)
    bucket("in/a/green #1.png", GREEN)
    assert ingest("s3://photos/in", storage).total == 3
    with monkeypatch.context() as patched:  # else a file would be read whole, or one request after the other
        patched.setattr(fsspec.get_filesystem_class("s3"), "cat_file", None)
        assert read(storage) == sorted([RED, GREEN, BLUE])
    assert rows(storage)["green #1.png"]["reference"]["stamp"].strip('"')  # type: ignore[index]
    table = lance.dataset(storage.images)
    bucket("in/0.tar", shard[: shard.index(BLUE)])
    bucket("in/a/green #1.png", PNG["purple"])
    bucket("in/a/other.png", PNG["black"])
    found = take_images(table, range(3))
    assert found.rows["image"].to_pylist() == [RED]
    assert ["has changed since it was read" in reason for reason in map(str, found.gone.values())] == [
        True,
        True,
    ]
    bucket("in/a/green #1.png", None)
    assert len(take_images(table, range(3)).gone) == 2
    bucket("in/0.tar", None)
    bucket("in/a/other.png", None)
    with pytest.raises(
        ClipgenError, match="nor any file beside it: .* `clipgen forget --root ROOT --under s3://.*`"
    ):
        take_images(table, range(3))


def test_a_store_that_lists_images_but_refuses_to_give_them_stops_the_run(
    bucket: Callable[[str, bytes | None], object],
    clip_reference: str,
    storage: Storage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket("in/red.png", RED)
    bucket("in/blue.png", BLUE)
    ingest("s3://photos/in", storage)
    refusal = PermissionError("The provided token has expired.")  # as s3fs says it; moto refuses nothing
    with monkeypatch.context() as patched:
        patched.setattr(referenced.Reader, "read", lambda *_: (_ for _ in ()).throw(refusal))
        with pytest.raises(ClipgenError, match=r"may not be read again \(.*expired.*credentials"):
            embed(storage, clip_reference)
    assert rows(storage).keys() == {"red.png", "blue.png"}
    assert not lance.dataset(storage.rejects).count_rows()
    assert embed(storage, clip_reference) == 2


def test_a_source_that_its_address_does_not_open_is_refused(storage: Storage, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("1.png", RED)
    with pytest.raises(ClipgenError, match=r"cannot be referenced.*set images\.store to images"):
        ingest(f"zip://::file://{tmp_path}/in.zip", storage)
