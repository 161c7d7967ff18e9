import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from clipgen_core.cli import app
from clipgen_core.data import exchange
from clipgen_core.data.embeddings import EmbeddingTable
from clipgen_core.data.pixels import png_bytes
from clipgen_core.data.tables import vectors
from clipgen_core.errors import ClipgenError
from clipgen_core.models.clip import LOCAL, ClipEncoder
from clipgen_core.stages import clip as clip_stage
from clipgen_core.stages import embeddings, images
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker
from tests.conftest import COLOURS, draw, tiny_clip_config
from tests.core.data.test_sources import write_tar

Written = tuple[np.ndarray, dict[str, np.ndarray]]


def by_id(table: EmbeddingTable) -> dict[str, np.ndarray]:
    rows = table.table.to_table()
    return dict(zip(rows["id"].to_pylist(), vectors(rows), strict=True))


def read_images(folder: Path, storage: Storage) -> None:
    images.run(images.Config(), source=str(folder), out=storage, tracker=NullTracker())


@pytest.fixture
def exported(pipeline: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The pipeline's embeddings, in three parts."""
    monkeypatch.setattr(exchange, "ROWS", 30)
    folder = str(tmp_path / "exported")
    table = EmbeddingTable(pipeline.current("embeddings", "tests").path)
    assert exchange.export(table, pipeline.images, folder) == (72, 0)
    return folder


def test_exported_embeddings_are_those_of_another_root_after_import(
    exported: str, pipeline: Storage, pictures: Path, storage: Storage, clip_reference: str
) -> None:
    names = sorted(path.name for path in Path(exported).rglob("*_1.*"))
    assert names == ["img_emb_1.npy", "metadata_1.parquet"]
    assert np.load(f"{exported}/img_emb/img_emb_0.npy").shape == (30, 32)
    assert pq.read_table(f"{exported}/metadata/metadata_2.parquet").num_rows == 12
    read_images(pictures / "pictures", storage)
    done = embeddings.import_from(exported, clip=clip_reference, out=storage)
    assert (done.rows, done.added, done.missing) == (72, 72, 0)
    theirs = by_id(EmbeddingTable(pipeline.current("embeddings", "tests").path))
    ours = EmbeddingTable(storage.current("embeddings", "tests").path)
    assert ours.clip == clip_reference and by_id(ours).keys() == theirs.keys()
    assert all(np.allclose(vector, theirs[key], atol=1e-6) for key, vector in by_id(ours).items())
    again = embeddings.import_from(exported, clip=clip_reference, out=storage)
    assert again.added == 0
    left = embeddings.run(
        embeddings.Config(), images=storage.images, clip=clip_reference, out=storage, tracker=NullTracker()
    )
    assert left.embedded == 0


def written_by_clip_retrieval(folder: Path, names: list[str], values: np.ndarray) -> str:
    for kind in ("img_emb", "metadata"):
        (folder / kind).mkdir(parents=True)
    np.save(folder / "img_emb" / "img_emb_0.npy", values.astype(np.float16))
    pq.write_table(pa.table({"image_path": names}), folder / "metadata" / "metadata_0.parquet")
    return str(folder)


@pytest.fixture
def embed(clip_reference: str) -> Callable[[int], np.ndarray]:
    encoder = ClipEncoder(clip_reference)
    return lambda count: encoder.encode_images([draw(colour, "disc") for colour in COLOURS[:count]])


def test_names_of_files_and_of_samples_as_clip_retrieval_writes_them(
    storage: Storage, tmp_path: Path, clip_reference: str, embed: Callable[[int], np.ndarray]
) -> None:
    source = tmp_path / "in"
    (source / "a").mkdir(parents=True)
    pictures = [png_bytes(draw(colour, "disc")) for colour in COLOURS[:5]]
    for i in range(2):
        (source / "a" / f"{i}.png").write_bytes(pictures[i])
    write_tar(
        source / "0.tar",
        {"s/2.png": pictures[2], "s/2.txt": b"x", "3.png": pictures[3], "4.png": pictures[4]},
    )
    write_tar(source / "1.tar", {"4.png": pictures[0]})  # so that the sample 4 stands for two images
    read_images(source, storage)
    folder = written_by_clip_retrieval(
        tmp_path / "e", [str(source / "a/0.png"), "a/1.png", "s/2", "3", "4"], embed(5)
    )
    with pytest.raises(ClipgenError, match=r"2 rows of .* name no image .* \(first: a/1.png\): read"):
        embeddings.import_from(folder, clip=clip_reference, out=storage)
    done = embeddings.import_from(
        folder, clip=clip_reference, out=storage, source=str(source), skip_missing=True
    )
    assert (done.rows, done.added, done.missing) == (5, 4, 1)
    table = EmbeddingTable(done.table)
    assert np.allclose(np.linalg.norm([*by_id(table).values()], axis=1), 1, atol=1e-6)
    rows = embeddings.run(
        embeddings.Config(), images=storage.images, clip=clip_reference, out=storage, tracker=NullTracker()
    )
    assert (rows.embedded, rows.total) == (1, 5)


def cut(folder: Path) -> None:
    file = folder / "img_emb" / "img_emb_1.npy"
    file.write_bytes(file.read_bytes()[:-100])


def shorter(folder: Path) -> None:
    file = folder / "metadata" / "metadata_1.parquet"
    pq.write_table(pq.read_table(file).slice(1), file)


def narrower(folder: Path) -> None:
    file = folder / "img_emb" / "img_emb_1.npy"
    np.save(file, np.load(file)[:, 1:])


def not_finite(folder: Path) -> None:
    file = folder / "img_emb" / "img_emb_1.npy"
    values = np.load(file)
    values[3], values[5, 0], values[6] = 0, np.nan, np.inf
    np.save(file, values)


def whole_numbers(folder: Path) -> None:
    file = folder / "img_emb" / "img_emb_1.npy"
    np.save(file, np.load(file).astype(np.int32))


def pickled(folder: Path) -> None:
    np.save(folder / "img_emb" / "img_emb_1.npy", np.array([[{}]]), allow_pickle=True)


def without_a_part(folder: Path) -> None:
    for file in ("img_emb/img_emb_2.npy", "metadata/metadata_2.parquet"):
        (folder / file).unlink()


def of_another_clip_as_it_says(folder: Path) -> None:
    said = json.loads((folder / "embeddings.json").read_text())
    (folder / "embeddings.json").write_text(json.dumps(said | {"clip_key": "other"}))


def others(folder: Path) -> None:
    for file in (folder / "metadata").iterdir():
        rows = pq.read_table(file).drop_columns(["id"])
        gone = pa.array([f"/gone/{i}.png" for i in range(rows.num_rows)])
        pq.write_table(rows.set_column(0, "image_path", gone), file)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (cut, "img_emb_1.npy is cut short: export the part again"),
        (shorter, "img_emb_1.npy has 30 rows and .*metadata_1.parquet has 29: export"),
        (narrower, "img_emb_1.npy has 31 numbers a row, and local-dir:.* gives 32: give the CLIP"),
        (not_finite, "3 rows of .* are zero or not finite: compute them again"),
        (whole_numbers, r"img_emb_1.npy holds int32 \[30, 32\]: it needs rows of float16"),
        (pickled, r"img_emb_1.npy holds object \[1, 1\]: it needs rows of float16"),
        (without_a_part, "has 60 rows, and 72 were exported: add the other parts"),
        (lambda folder: (folder / "metadata" / "metadata_1.parquet").unlink(), "img_emb has the part 1 and"),
        (lambda folder: shutil.rmtree(folder / "metadata"), "img_emb has the part 0 and .*metadata has none"),
        (of_another_clip_as_it_says, r"are of the CLIP local-dir:.* \(other\), not of local-dir"),
        (others, r"none of the 72 rows of .* names an image of the images table \(first: /gone/0.png\)"),
    ],
)
def test_what_does_not_belong_together_is_refused_before_anything_is_written(
    exported: str,
    harm: Callable[[Path], None],
    said: str,
    pictures: Path,
    storage: Storage,
    clip_reference: str,
) -> None:
    read_images(pictures / "pictures", storage)
    harm(Path(exported))
    with pytest.raises(ClipgenError, match=said):
        embeddings.import_from(exported, clip=clip_reference, out=storage)
    assert not Path(storage.path("embeddings")).exists()


def test_embeddings_of_another_clip_are_told_by_embedding_some_images_again(
    exported: str, pictures: Path, storage: Storage, tmp_path: Path
) -> None:
    torch.manual_seed(7)
    config = tiny_clip_config()
    clip_stage.save_local_dir(open_clip.CLIP(**config.open_clip_config()), config, str(tmp_path / "other"))
    (Path(exported) / "embeddings.json").unlink()
    read_images(pictures / "pictures", storage)
    with pytest.raises(ClipgenError, match=r"are not those of .*: 1\d images were embedded again"):
        embeddings.import_from(exported, clip=f"{LOCAL}{tmp_path / 'other'}", out=storage)


def test_the_commands(
    pictures: Path, storage: Storage, pipeline: Storage, tmp_path: Path, clip_reference: str
) -> None:
    runner, folder = CliRunner(), str(tmp_path / "e")
    command = ["export-embeddings", folder, "--root", pipeline.root]
    assert "72 embeddings of local-dir:" in runner.invoke(app, command).output
    refused = runner.invoke(app, command)
    assert refused.exit_code == 2 and "holds files: choose a new folder" in " ".join(refused.output.split())
    read_images(pictures / "pictures" / "disc", storage)
    command = ["import-embeddings", folder, "--root", storage.root, "--clip", clip_reference]
    refused = runner.invoke(app, command)
    assert refused.exit_code == 2 and "48 rows of" in " ".join(refused.output.split())
    done = " ".join(runner.invoke(app, [*command, "--skip-missing"]).output.split())
    assert "24 of 72 embeddings are new" in done and "48 are left out" in done
    refused = runner.invoke(app, ["import-embeddings", str(tmp_path), *command[2:]])
    assert refused.exit_code == 2 and "holds no embeddings" in " ".join(refused.output.split())
