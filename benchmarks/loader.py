"""The token-shard reader: how many images a second it gives, and what memory it takes at any size."""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.shards import ROWS_PER_PART, write_shards
from benchmarks.timing import Row, in_turn
from clipgen_core.data import tokens

BATCH = 256
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
