"""Taking images in one file at a time from a store of high latency, and reading them there again."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import numpy as np

from benchmarks.store import BUCKET, photos
from benchmarks.timing import Row, in_turn, ratio, seconds
from clipgen_core.data.images import ImageTable
from clipgen_core.stages import images
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker

FILES, LATENCY = 8000, 0.05
READ, BATCH = 2000, 64  # referenced images that are read again


def ingest() -> list[Row]:
    """Images a second of raw_images from S3 at LATENCY seconds a request."""
    with store(FILES, LATENCY):
        _take_in("one")  # what is imported at first use
        began, worked = time.perf_counter(), time.process_time()
        added = _take_in("photos")
        took, worked = time.perf_counter() - began, time.process_time() - worked
        again = [*_read_again()]
    assert added == FILES
    return [
        Row(
            "ingest",
            f"images/s from S3 at {LATENCY * 1000:.0f} ms a request",
            FILES / took,
            "",
            ">= 850",
            f"{FILES} files, one GET each; {1000 * worked / FILES:.2f} ms of one core for each",
        ),
        *again,
    ]


def _read_again() -> Iterator[Row]:
    """Reading and decoding referenced images: from the store, and from a folder against stored ones."""
    with tempfile.TemporaryDirectory() as roots, tempfile.TemporaryDirectory() as folder:
        for number, jpeg in enumerate(photos(READ).values()):
            Path(folder, f"{number}.jpg").write_bytes(jpeg)
        there = _table(f"s3://{BUCKET}/photos", f"{roots}/s3", "references")
        rate = READ / seconds(lambda: _decode(there))
        what = f"referenced images/s from S3 at {LATENCY * 1000:.0f} ms a request"
        yield Row("ingest", what, rate, "", "", f"read and decoded in random batches of {BATCH}")
        stored, refers = (_table(folder, f"{roots}/{kind}", kind) for kind in ("images", "references"))
        slow, fast = in_turn(lambda: _decode(refers), lambda: _decode(stored))
        what = "time of referenced images in a folder, against stored ones"
        rates = f"{READ / min(slow):.0f} against {READ / min(fast):.0f} images/s"
        yield Row("ingest", what, ratio(slow, fast), "x", "", rates)


def _table(source: str, root: str, kind: str) -> ImageTable:
    config = images.Config.model_validate({"store": kind})
    return ImageTable(images.run(config, source=source, out=Storage(root), tracker=NullTracker()).table)


def _decode(table: ImageTable) -> None:
    rows = np.random.default_rng(0).permutation(table.total)[:READ]
    for start in range(0, len(rows), BATCH):
        table.images(rows[start : start + BATCH])


def _take_in(folder: str) -> int:
    with tempfile.TemporaryDirectory() as root:
        source, out = f"s3://{BUCKET}/{folder}", Storage(root)
        return images.run(images.Config(), source=source, out=out, tracker=NullTracker()).added


@contextmanager
def store(files: int, latency: float) -> Iterator[None]:
    """A store in a process of its own, which the environment names.

    Args:
        files: Images that it holds.
        latency: Seconds before each answer.

    Yields:
        Nothing.
    """
    command = [sys.executable, "-m", "benchmarks.store", str(files), str(latency)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout
    settings = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.stdout.readline().strip()}"}
    settings |= {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret"}
    before = dict(os.environ)
    os.environ.update(settings | {"AWS_DEFAULT_REGION": "us-east-1"})
    try:
        yield
    finally:
        server.kill()
        server.wait()
        os.environ.clear()
        os.environ.update(before)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
