"""SIGKILL while pictures are taken in, embedded and tokenised; the restart ends as if undisturbed."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from clipgen_core import storage as files
from clipgen_core.data.tables import column, open_table, vectors
from clipgen_core.data.tokens import TokenShards
from clipgen_core.stages import embeddings, images, tokens
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker


def _take_in(root: str, source: str, clip: str, vqgan: str) -> None:
    out, tracker = Storage(root), NullTracker()
    taken = images.run(images.Config(batch_size=6), source=source, out=out, tracker=tracker)
    embedded = embeddings.run(
        embeddings.Config(batch_size=6, block_size=6),
        images=taken.table,
        clip=clip,
        out=out,
        tracker=tracker,
    )
    tokens.run(
        tokens.Config(batch_size=6, block_size=6, rows_per_part=12),
        images=taken.table,
        embeddings=embedded.table,
        vqgan=vqgan,
        out=out,
        tracker=tracker,
    )


@pytest.mark.slow
def test_the_restart_after_sigkill_equals_an_undisturbed_run(
    pictures: Path, clip_reference: str, pipeline: Storage, tmp_path: Path
) -> None:
    spawn, rng = multiprocessing.get_context("spawn"), random.Random(0)
    inputs = (str(pictures / "pictures"), clip_reference, pipeline.current("vqgan", "tests").path)
    whole, killed = Storage(str(tmp_path / "whole")), Storage(str(tmp_path / "killed"))
    _take_in(whole.root, *inputs)
    for attempt in range(4):
        worker = spawn.Process(target=_take_in, args=(killed.root, *inputs))
        before = time.monotonic()
        worker.start()
        while worker.is_alive() and not files.exists(killed.images) and time.monotonic() < before + 60:
            time.sleep(0.01)
        worker.join(timeout=rng.uniform(0, 0.5) if attempt == 0 else rng.uniform(2.0, 5.0))
        if worker.is_alive() and worker.pid:
            os.kill(worker.pid, signal.SIGKILL)
        worker.join()
    _take_in(killed.root, *inputs)

    for table in ("images", "embeddings"):
        one, other = (
            out.images if table == "images" else out.current("embeddings", "tests").path
            for out in (whole, killed)
        )
        assert sorted(column(one, "id")) == sorted(column(other, "id"))
        assert len(column(other, "id")) == len(set(column(other, "id"))) == 72
    first, second = (
        open_table(out.current("embeddings", "tests").path).to_table() for out in (whole, killed)
    )
    rows = dict(zip(second["id"].to_pylist(), vectors(second), strict=True))
    expected = zip(first["id"].to_pylist(), vectors(first), strict=True)
    assert all(np.allclose(rows[image_id], vector, atol=0.02) for image_id, vector in expected)
    shards = TokenShards(killed.current("tokens", "tests").path, seed=0)
    assert shards.rows + len(shards.validation()) == 72
