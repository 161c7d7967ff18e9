"""Taking images in one file at a time from a store of high latency."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec

from benchmarks.store import BUCKET
from benchmarks.timing import Row
from clipgen_core.stages import images
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker

FILES, LATENCY = 8000, 0.05


def ingest() -> list[Row]:
    """Images a second of raw_images from S3 at LATENCY seconds a request."""
    with store(FILES, LATENCY):
        _take_in("one")  # what is imported at first use
        began, worked = time.perf_counter(), time.process_time()
        added = _take_in("photos")
        took, worked = time.perf_counter() - began, time.process_time() - worked
    assert added == FILES
    return [
        Row(
            "ingest",
            f"images/s from S3 at {LATENCY * 1000:.0f} ms a request",
            FILES / took,
            "",
            ">= 850",
            f"{FILES} files, one GET each; {1000 * worked / FILES:.2f} ms of one core for each",
        )
    ]


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
