"""Taking in, embedding and searching images: speed beside plain loops, cost and memory against size."""

import functools
import hashlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.timing import Row, in_turn, ratio, seconds
from clipgen_core.data.tables import nearest, open_table, upsert, vector_array, vectors
from clipgen_core.data.upkeep import update_indexes
from clipgen_core.models.clip import LOCAL, ClipEncoder
from clipgen_core.schema import embeddings_schema
from clipgen_core.settings.training import TrainConfig
from clipgen_core.stages import clip as clip_stage
from clipgen_core.stages import embeddings, images
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker

TRACKER = NullTracker()
PHOTOS, PLAIN, PHOTO_SIZE, BATCH = 960, 160, (320, 240), 32  # PLAIN: as many do for a loop
VIT_B_32 = {"vision_width": 768, "vision_layers": 12, "patch_size": 32, "image_size": 224}
FILES = 100_000
SIZES = (10_000, 100_000, 1_000_000)
ROWS_A_FILE = 10_000
SEARCHED, DIM, CENTRES, QUERIES = 1_000_000, 256, 2000, 100


def small_clip(folder: Path, **shape: Any) -> str:
    """An untrained CLIP: speed does not depend on what weights have learnt."""
    config = clip_stage.Config(train=TrainConfig(steps=1, batch_size=1, learning_rate=1e-3), **shape)
    torch.manual_seed(0)
    clip_stage.save_local_dir(open_clip.CLIP(**config.open_clip_config()), config, str(folder))
    return f"{LOCAL}{folder}"


def embedding() -> list[Row]:
    """From image files to the embeddings table: against the model alone, and against plain loops."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "photos"
        write_photos(source)
        clip = small_clip(Path(scratch) / "clip", **VIT_B_32)
        encoder = ClipEncoder(clip)
        ready = torch.randn(PHOTOS, 3, 224, 224)
        roots = iter(range(10**6))

        def ours() -> None:
            out = Storage(f"{scratch}/root{next(roots)}")
            taken = images.run(images.Config(), source=str(source), out=out, tracker=TRACKER)
            config = embeddings.Config(batch_size=BATCH)
            embeddings.run(config, images=taken.table, clip=clip, out=out, tracker=TRACKER)

        def bare() -> None:
            for some in ready.split(BATCH):
                encoder.encode_prepared(some)

        files = sorted(source.iterdir())[:PLAIN]
        loops = [
            functools.partial(plain_loop, encoder, files, batch, workers, bf16)
            for batch, workers, bf16 in ((BATCH, 2, False), (1, 0, False), (BATCH, 2, True), (1, 0, True))
        ]
        mine, model, *plain_loops = in_turn(ours, bare, *loops, rounds=2)
    loop, one, loop_bf16, one_bf16 = ([t * PHOTOS / PLAIN for t in times] for times in plain_loops)
    detail = f"{PHOTOS / statistics.median(mine):.1f} images/s of {PHOTO_SIZE}, batch {BATCH}"
    plain, single = "open_clip + DataLoader", "open_clip, one image at a time"
    return [
        Row("embedding", "share of the bare model's speed", ratio(model, mine), "", ">= 0.90", detail),
        Row("embedding", f"{plain} / ours", ratio(loop, mine), "x", ">= 1", "fp32, its default"),
        Row("embedding", f"{single} / ours", ratio(one, mine), "x", ">= 3", "fp32, its default"),
        Row("embedding", f"{plain} / ours", ratio(loop_bf16, mine), "x", "", "bf16, as ours"),
        Row("embedding", f"{single} / ours", ratio(one_bf16, mine), "x", "", "bf16, as ours"),
    ]


class _Files(Dataset):  # type: ignore[type-arg]
    def __init__(self, files: list[Path], preprocess: Any) -> None:
        self.files, self.preprocess = files, preprocess

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, at: int) -> Any:
        return self.preprocess(Image.open(self.files[at]).convert("RGB"))


@torch.no_grad()
def plain_loop(encoder: ClipEncoder, files: list[Path], batch: int, workers: int, bf16: bool) -> None:
    """What a script does: files to embeddings in memory, no table, no resuming."""
    loader = DataLoader(_Files(files, encoder.preprocess), batch_size=batch, num_workers=workers)
    model: Any = encoder.model
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        torch.cat([model.encode_image(pictures) for pictures in loader])


def write_photos(folder: Path, count: int = PHOTOS) -> None:
    """JPEGs with the smooth gradients and edges of photographs."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
        coarse.resize(PHOTO_SIZE, Image.Resampling.BICUBIC).save(folder / f"{number:04d}.jpg", quality=90)


def rerun() -> list[Row]:
    """A folder of many photographs, taken in and embedded (by the demo's CLIP), and again unchanged."""
    with tempfile.TemporaryDirectory() as scratch:
        source, out = Path(scratch) / "in", Storage(f"{scratch}/root")
        write_photos(Path(scratch) / "photos")
        photos = [file.read_bytes() for file in (Path(scratch) / "photos").iterdir()]
        for number in range(FILES):
            folder = source / str(number // 10_000)
            folder.mkdir(parents=True, exist_ok=True)
            distinct = photos[number % len(photos)] + number.to_bytes(8, "big")  # after the image's end
            (folder / f"{number}.jpg").write_bytes(distinct)

        shape = {"vision_width": 192, "vision_layers": 6, "patch_size": 8, "image_size": 64}
        clip = small_clip(Path(scratch) / "clip", **shape)

        def ingest() -> None:
            images.run(images.Config(), source=str(source), out=out, tracker=TRACKER)

        def embed() -> None:
            embeddings.run(embeddings.Config(), images=out.images, clip=clip, out=out, tracker=TRACKER)

        first = seconds(ingest), seconds(embed)
        again = [(seconds(ingest), seconds(embed)) for _ in range(3)]
    later = [statistics.median(times) for times in zip(*again, strict=True)]
    detail = (
        f"{FILES} files: ingest {first[0]:.1f} s, then {later[0]:.2f} s; "
        f"embedding {first[1]:.1f} s, then {later[1]:.2f} s"
    )
    return [
        Row("rerun", "first run / run on unchanged files", sum(first) / sum(later), "x", ">= 100", detail)
    ]


def growth() -> list[Row]:
    """Ingest and embedding of 10 thousand to a million small images from Parquet: time and peak memory."""
    rows, peaks = [], []
    with tempfile.TemporaryDirectory() as scratch:
        shape = {"vision_width": 64, "vision_layers": 1, "patch_size": 16, "image_size": 32}
        clip = small_clip(Path(scratch) / "clip", **shape)
        for size in SIZES:
            source = Path(scratch) / f"in{size}"
            write_parquet(source, size)
            command = (
                f"import benchmarks.tables as t; t.grow({str(source)!r}, {clip!r}, {scratch + f'/{size}'!r})"
            )
            done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
            cost = json.loads(done.stdout.splitlines()[-1])
            peaks.append(cost["megabytes"])
            detail = "ingest {ingest:.1f} s, embedding {embedding:.1f} s, peak {megabytes:.0f} MB".format(
                **cost
            )
            per = 1e3 * (cost["ingest"] + cost["embedding"]) / size
            rows.append(Row("growth", f"{size:,} images: ms an image", per, "", "flat", detail))
    change = f"{peaks[-1]:.0f} MB against {peaks[0]:.0f} MB"
    rows.append(Row("growth", "peak memory, largest / smallest", peaks[-1] / peaks[0], "x", "flat", change))
    return rows


def grow(source: str, clip: str, root: str) -> None:
    """Print what one size costs, as JSON; to be run in a process of its own."""
    out = Storage(root)
    ingest = seconds(lambda: images.run(images.Config(), source=source, out=out, tracker=TRACKER))
    config = embeddings.Config(index_from=10**9)  # the index is benchmarked by itself
    embedding = seconds(
        lambda: embeddings.run(config, images=out.images, clip=clip, out=out, tracker=TRACKER)
    )
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
    print(json.dumps({"ingest": ingest, "embedding": embedding, "megabytes": peak}))


def small_pictures(first: int, count: int) -> Iterator[bytes]:
    """Distinct 16 x 16 PNGs: the number in the pixels of one row."""
    pixels = np.full((16, 16, 3), 255, np.uint8)
    for number in range(first, first + count):
        pixels[0, :8, 0] = np.frombuffer(number.to_bytes(8, "big"), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
        yield buffer.getvalue()


def write_parquet(folder: Path, rows: int) -> None:
    folder.mkdir()
    for first in range(0, rows, ROWS_A_FILE):
        data = list(small_pictures(first, min(ROWS_A_FILE, rows - first)))
        pq.write_table(pa.table({"image": pa.array(data, pa.binary())}), folder / f"{first:09d}.parquet")


def search() -> list[Row]:
    """Warm search among a million embeddings of synthetic clusters, against exact search."""
    with tempfile.TemporaryDirectory() as scratch:
        url = f"{scratch}/embeddings.lance"
        centres = np.random.default_rng(0).standard_normal((CENTRES, DIM)).astype(np.float32)
        schema = embeddings_schema(DIM, "", "")
        for first in range(0, SEARCHED, 100_000):
            ids = pa.array([hashlib.sha256(str(first + i).encode()).hexdigest() for i in range(100_000)])
            columns = [ids, pa.array(["a"] * 100_000), vector_array(clustered(centres, 100_000, first + 1))]
            upsert(url, pa.Table.from_arrays(columns, schema=schema), "id", overwrite=False)
        built = seconds(lambda: update_indexes(url))
        table, queries = open_table(url), clustered(centres, QUERIES, 0)
        nearest(table, queries[0], 10)
        found, times = [], []
        for query in queries:
            times.append(seconds(lambda q=query: found.append(nearest(table, q, 10)["id"].to_pylist())))  # type: ignore[misc]
        hits = [len(set(a) & set(b)) for a, b in zip(found, exact(table, queries), strict=True)]
    detail = f"index built in {built:.0f} s; 95th percentile {1e3 * np.quantile(times, 0.95):.1f} ms"
    return [
        Row("search", "warm ms, 10 of 1,000,000", 1e3 * statistics.median(times), "", "< 50", detail),
        Row("search", "recall@10 against exact search", float(np.mean(hits)) / 10, "", ">= 0.95", detail),
    ]


def clustered(centres: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Unit vectors [count, DIM] around centres, each half noise."""
    rng = np.random.default_rng(seed)
    values = centres[rng.integers(len(centres), size=count)] + rng.standard_normal((count, DIM), np.float32)
    made: np.ndarray = values / np.linalg.norm(values, axis=1, keepdims=True)
    return made


def exact(table: Any, queries: np.ndarray) -> list[list[str]]:
    """The ids of the ten highest cosines of each query, by looking at every row."""
    cosines, ids = [], []
    for batch in table.to_batches(columns=["id", "vector"]):
        cosine, names = queries @ vectors(batch).T, np.array(batch["id"].to_pylist())
        best = np.argpartition(-cosine, min(10, len(names) - 1), axis=1)[:, :10]
        cosines.append(np.take_along_axis(cosine, best, axis=1))
        ids.append(names[best])
    together, named = np.concatenate(cosines, axis=1), np.concatenate(ids, axis=1)
    order = np.argsort(-together, axis=1)[:, :10]
    return [row.tolist() for row in np.take_along_axis(named, order, axis=1)]
