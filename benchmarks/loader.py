"""The token-shard reader: how many images a second it gives, and what memory it takes at any size."""

import hashlib
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.timing import Row, in_turn
from clipgen_core.data import tokens
from clipgen_core.schema import Part, TokenManifest, tokens_schema

CODES, GRID, DIM, BATCH = 16384, 16, 512, 256
ROWS_PER_PART = 4096  # the default of token_shards
WINDOW_BATCHES = 4 * ROWS_PER_PART // BATCH  # every round reads, checks and shuffles four new parts


def loader(trainer_images_per_second: float) -> list[Row]:
    """Speed against the trainer's appetite; peak memory with 10 thousand and a million rows."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = {rows: write_shards(Path(scratch) / str(rows), rows) for rows in (10_000, 1_000_000)}
        shards = tokens.TokenShards(folders[1_000_000], seed=0)
        steps = iter(range(10**9))

        def read() -> None:
            for _ in range(WINDOW_BATCHES):
                shards.batch(next(steps), BATCH)

        times = in_turn(read, rounds=5, warm_up=1)[0]
        speed = WINDOW_BATCHES * BATCH / statistics.median(times)
        small, large = (peak_memory(folder) for folder in folders.values())
    return [
        Row(
            "loader",
            "images/s, loader / trainer",
            speed / trainer_images_per_second,
            "x",
            ">= 20",
            f"{speed:.0f} against {trainer_images_per_second:.1f} images/s",
        ),
        Row(
            "loader",
            "peak memory, 1,000,000 / 10,000 rows",
            large / small,
            "x",
            "does not grow",
            f"{large:.0f} MB against {small:.0f} MB after 400 batches of {BATCH} spread over the pass",
        ),
    ]


def write_shards(folder: Path, rows: int) -> str:
    """Token shards of random codes and embeddings; parts beyond the first few are copies of those."""
    folder.mkdir(parents=True)
    schema = tokens_schema(CODES, GRID * GRID, DIM)
    rng, made, parts = np.random.default_rng(0), dict[int, bytes](), []
    for number, start in enumerate(range(0, rows, ROWS_PER_PART)):
        count, name = min(ROWS_PER_PART, rows - start), f"part-train-{number:05d}.parquet"
        if count not in made:
            part = tokens.write_part(folder, name, _table(rng, count, schema))
            made[count] = (folder / name).read_bytes()
        else:
            (folder / name).write_bytes(made[count])
            digest = hashlib.sha256(made[count]).hexdigest()
            part = Part(file=name, rows=count, sha256=digest)
        parts.append(part)
    held = tokens.write_part(folder, "part-validation-00000.parquet", _table(rng, 64, schema))
    manifest = TokenManifest(
        grid=GRID,
        codebook_size=CODES,
        embedding_dim=DIM,
        views=1,
        smallest_crop=1.0,
        images_digest="",
        clip="",
        clip_key="",
        vqgan="",
        vqgan_digest="",
        embeddings="",
        embeddings_version=0,
        codebook_usage=1.0,
        codebook_perplexity=1.0,
        train=tuple(parts),
        validation=(held,),
    )
    (folder / tokens.MANIFEST).write_text(manifest.model_dump_json())
    return str(folder)


def _table(rng: np.random.Generator, count: int, schema: pa.Schema) -> pa.Table:
    codes = pa.array(rng.integers(CODES, size=count * GRID * GRID, dtype=np.uint16))
    embeddings = pa.array(rng.standard_normal(count * DIM, np.float32))
    columns = [
        pa.array([f"{i:064x}" for i in range(count)]),
        pa.array(np.zeros(count, np.uint8)),
        pa.FixedSizeListArray.from_arrays(codes, GRID * GRID),
        pa.FixedSizeListArray.from_arrays(embeddings, DIM),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def peak_memory(folder: str) -> float:
    """Megabytes that a process takes at most, which does nothing but read."""
    code = f"from benchmarks.loader import read_through; print(read_through({folder!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def read_through(folder: str) -> float:
    shards = tokens.TokenShards(folder, seed=0)
    last = max(shards.rows // BATCH, 400)
    for step in np.linspace(0, last, 400).astype(int):
        shards.batch(int(step), BATCH)
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
