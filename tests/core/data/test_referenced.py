import io
import os
import tarfile
import zipfile
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipgen_core.data.overview import overview
from clipgen_core.data.pixels import png_bytes
from clipgen_core.data.referenced import take_images
from clipgen_core.errors import ClipgenError
from clipgen_core.stages import embeddings, images
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
