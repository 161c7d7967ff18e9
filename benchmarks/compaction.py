"""The weekly compaction of an images table: its peak memory, and what it writes when little has come."""

import json
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.timing import Row
from clipgen_core.data.tables import upsert
from clipgen_core.data.upkeep import compact
from clipgen_core.schema import IMAGES

IMAGE_BYTES, NIGHT = 100_000, 500  # images of a night
NIGHTS = (8, 32)


def compaction() -> list[Row]:
    """Tables of some nights, compacted, and again after one night more."""
    with tempfile.TemporaryDirectory() as scratch:
        costs = [_measured(f"{scratch}/{nights}.lance", nights) for nights in NIGHTS]
    (small, _, _), (large, whole, later) = costs
    sizes = " and ".join(f"{nights * NIGHT * IMAGE_BYTES / 1e9:.1f}" for nights in NIGHTS)
    return [
        Row(
            "compaction",
            "peak memory, larger / smaller table",
            large / small,
            "x",
            "flat",
            f"{large:.0f} MB against {small:.0f} MB; {sizes} GB",
        ),
        Row(
            "compaction",
            "bytes written, first / after another night",
            whole / later,
            "x",
            "grows with the table",
            f"{whole:.0f} MB, then {later:.0f} MB",
        ),
    ]


def _measured(url: str, nights: int) -> tuple[float, float, float]:
    """Memory that a first compaction takes at most, and what it and a later one write, in megabytes."""
    for night in range(nights):
        add(url, night)
    first = _cost(url)
    add(url, nights)
    return first["peak"], first["written"], _cost(url)["written"]


def _cost(url: str) -> dict[str, float]:
    code = f"from benchmarks.compaction import run; run({url!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    cost: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return cost


def run(url: str) -> None:
    """Compact a table and print what that cost, as JSON; to be run in a process of its own."""
    before = _memory("VmRSS")
    compact(url, timedelta(days=7))
    peak = _memory("VmHWM") - before
    written = int(Path("/proc/self/io").read_text().split("wchar:")[1].split()[0]) / 1e6
    print(json.dumps({"peak": peak, "written": written}))


def _memory(kind: str) -> float:
    """Megabytes of this process: VmRSS those of now, VmHWM the most that it had."""
    return int(Path("/proc/self/status").read_text().split(f"{kind}:")[1].split()[0]) / 1024


def add(url: str, night: int) -> None:
    """Commit the images of a night, of random bytes.

    Args:
        url: The table.
        night: Its number, which their ids depend on.
    """
    rng, ids = np.random.default_rng(night), range(night * NIGHT, (night + 1) * NIGHT)
    columns = {"id": pa.array([f"{i:064x}" for i in ids])}
    columns["image"] = pa.array([rng.bytes(IMAGE_BYTES) for _ in ids], pa.large_binary())
    for field in IMAGES:
        text = pa.types.is_string(field.type)
        columns.setdefault(field.name, pa.array([str(night) if text else 1] * NIGHT))
    rows = [columns[field.name].cast(field.type) for field in IMAGES]
    upsert(url, pa.Table.from_arrays(rows, schema=IMAGES), "id", overwrite=False)
