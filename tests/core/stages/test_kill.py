"""SIGKILL at random points of ingest, embedding and tokenising; the restart ends as if undisturbed.

Processes are forked from a server that has the libraries loaded, so that a trial takes a second.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipgen_core.data import ingest as ingesting
from clipgen_core.data.tables import column, open_table, vectors
from clipgen_core.stages import embeddings, images, tokens
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker
from tests.conftest import PROCESSES

BATCH, TRIALS, PICTURES = 6, 20, 72


def ingest(out: Storage, inputs: dict[str, str]) -> None:
    config = images.Config(batch_size=BATCH, readers=1)
    images.run(config, source=inputs["source"], out=out, tracker=NullTracker())


def embed(out: Storage, inputs: dict[str, str]) -> None:
    config = embeddings.Config(batch_size=BATCH, block_size=BATCH)
    embeddings.run(config, images=out.images, clip=inputs["clip"], out=out, tracker=NullTracker())


def tokenise(out: Storage, inputs: dict[str, str]) -> None:
    tokens.run(
        tokens.Config(batch_size=BATCH, block_size=BATCH, rows_per_part=12),
        images=out.images,
        embeddings=out.current("embeddings", "tests").path,
        vqgan=inputs["vqgan"],
        out=out,
        tracker=NullTracker(),
    )


STAGES = {"ingest": ingest, "embed": embed, "tokenise": tokenise}
WORK = {
    "ingest": (ingesting, "examine"),
    "embed": (embeddings.Embedder, "rows"),
    "tokenise": (tokens.Encoder, "rows"),
}


def child(stage: str, root: str, inputs: dict[str, str], journal: str) -> None:
    """Run a stage; the journal gets a line when it starts and one for each picture worked on."""
    owner, name = WORK[stage]
    work: Callable[..., Any] = getattr(owner, name)

    def noted(*given: Any) -> Any:
        made = work(*given)
        write("picture\n" * (1 if stage == "ingest" else made.num_rows))
        return made

    def write(text: str) -> None:
        with Path(journal).open("a") as file:
            file.write(text)

    setattr(owner, name, noted)
    write("start\n")
    STAGES[stage](Storage(root), inputs)


def start(stage: str, root: Path, inputs: dict[str, str], journal: Path) -> Any:
    process = PROCESSES.Process(target=child, args=(stage, str(root), inputs, str(journal)))
    process.start()
    while not journal.exists() and process.is_alive():
        time.sleep(0.002)
    return process


def result(stage: str, out: Storage) -> Any:
    """What an undisturbed run and a restarted one must agree on."""
    if stage == "ingest":
        return sorted(column(out.images, "id")), sorted(column(out.files, "uri")), column(out.rejects, "uri")
    if stage == "embed":
        table = open_table(out.current("embeddings", "tests").path).to_table()
        order = np.argsort(table["id"].to_pylist())
        return table["id"].take(order).to_pylist(), vectors(table)[order].round(2).tolist()
    return out.current("tokens", "tests").digest


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_twenty_kills_leave_what_an_undisturbed_run_leaves(
    stage: str, pictures: Path, clip_reference: str, pipeline: Storage, tmp_path: Path
) -> None:
    inputs = {
        "source": str(pictures / "pictures"),
        "clip": clip_reference,
        "vqgan": pipeline.current("vqgan", "tests").path,
    }
    before = tmp_path / "before"
    for earlier in list(STAGES)[: list(STAGES).index(stage)]:
        STAGES[earlier](Storage(str(before)), inputs)
    before.mkdir(exist_ok=True)
    whole = tmp_path / "whole"
    relocate(before, whole)
    process, began = start(stage, whole, inputs, tmp_path / "whole.txt"), time.monotonic()
    process.join()
    seconds = time.monotonic() - began
    expected = result(stage, Storage(str(whole)))
    rng, killed = random.Random(stage), 0
    for trial in range(3 * TRIALS):
        root, journal = tmp_path / f"{trial}", tmp_path / f"{trial}.txt"
        relocate(before, root)
        process = start(stage, root, inputs, journal)
        process.join(rng.uniform(0, seconds))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.join()
        again = start(stage, root, inputs, journal)
        again.join()
        assert again.exitcode == 0
        assert result(stage, Storage(str(root))) == expected
        worked = journal.read_text().count("picture")
        ahead = 5 if stage == "ingest" else 0  # pictures looked at before their batch is full
        assert PICTURES <= worked <= PICTURES + BATCH + ahead, "more than the batch at hand was done again"
        shutil.rmtree(root)
        if killed == TRIALS:
            return
    raise AssertionError(f"only {killed} of {TRIALS} runs were caught alive")


def relocate(before: Path, root: Path) -> None:
    """A copy of a root, with its pointers."""
    shutil.copytree(before, root)
    for pointer in root.glob("current/*.json"):
        pointer.write_text(pointer.read_text().replace(str(before), str(root)))
