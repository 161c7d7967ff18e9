"""Embedding on a real Ray cluster of two nodes on loopback; a worker is killed in the middle."""

import multiprocessing
import os
import signal
from pathlib import Path

import lance
import numpy as np
import psutil
import pytest

from clipgen_core.data.tables import column, find_table, vectors
from clipgen_core.settings.compute import ComputeConfig
from clipgen_core.stages import embeddings, images
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker
from tests.conftest import COLOURS, SHAPES, draw, wait_for

COUNT = 480


def embed(root: str, clip: str, compute: ComputeConfig) -> None:
    config = embeddings.Config(batch_size=8, block_size=16, compute=compute)
    out = Storage(root)
    embeddings.run(config, images=out.images, clip=clip, out=out, tracker=NullTracker())


@pytest.mark.slow
def test_a_killed_worker_loses_and_doubles_nothing(
    ray_cluster: str, clip_reference: str, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for i in range(COUNT):
        draw(COLOURS[i % 8], SHAPES[i // 8 % 3], 24 + i // 24).save(source / f"{i}.png")
    out = Storage(str(tmp_path / "root"))
    images.run(images.Config(), source=str(source), out=out, tracker=NullTracker())
    compute = ComputeConfig(where="ray", workers=2, cpus=0.5)
    spawn = multiprocessing.get_context("spawn")
    driver = spawn.Process(target=embed, args=(out.root, clip_reference, compute))
    driver.start()
    victim = wait_for(
        lambda: worker_in_the_middle(out), "a worker's commit", alive=driver.is_alive, seconds=180, pause=0.02
    )
    os.kill(victim, signal.SIGKILL)
    done_by_then = rows(out)
    driver.join(timeout=240)
    assert driver.exitcode == 0
    assert done_by_then < COUNT
    table = out.current("embeddings", "tests").path
    ids = column(table, "id")
    assert len(ids) == len(set(ids)) == COUNT
    assert sorted(ids) == sorted(column(out.images, "id"))

    alone = Storage(str(tmp_path / "alone"))
    images.run(images.Config(), source=str(source), out=alone, tracker=NullTracker())
    embed(alone.root, clip_reference, ComputeConfig())
    one, other = (lance.dataset(o.current("embeddings", "tests").path).to_table() for o in (out, alone))
    expected = dict(zip(other["id"].to_pylist(), vectors(other), strict=True))
    assert all(
        np.allclose(vector, expected[one_id], atol=0.02)
        for one_id, vector in zip(one["id"].to_pylist(), vectors(one), strict=True)
    )


def rows(out: Storage) -> int:
    folder = Path(out.path("embeddings"))
    found = [find_table(str(path)) for path in folder.glob("*.lance")] if folder.exists() else []
    return sum(table.count_rows() for table in found if table is not None)


def worker_in_the_middle(out: Storage) -> int | None:
    """The process id of a Ray worker that has committed some blocks and has others to do."""
    for process in psutil.process_iter(["cmdline"]) if rows(out) else ():
        title = " ".join(process.info["cmdline"] or [])
        if title.startswith("ray::") and "Map" in title and "IDLE" not in title:
            return process.pid
    return None
