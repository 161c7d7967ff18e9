import os
import random
import re
import shutil
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import lance
import pytest

from clipgen_core.data.pixels import png_bytes
from clipgen_core.data.tables import column, update
from clipgen_core.errors import ClipgenError
from clipgen_core.stages import images
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker
from tests.conftest import COLOURS, PROCESSES, draw
from tests.core.data.test_sources import write_tar

WEEK = images.Config(mirror_after_days=7)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Eight images in the folders a and b, and a tar of two in a."""
    for number, colour in enumerate(COLOURS):
        file = tmp_path / "in" / ("a" if number < 4 else "b") / f"{colour}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        draw(colour, "disc").save(file)
    crosses = {f"{colour} cross.png": png_bytes(draw(colour, "cross")) for colour in ("red", "blue")}
    write_tar(tmp_path / "in" / "a" / "two.tar", crosses)
    return tmp_path / "in"


def ingest(
    source: Path, storage: Storage, config: images.Config = WEEK, folder: str | None = None
) -> images.Result:
    return images.run(config, source=str(source), out=storage, tracker=NullTracker(), folder=folder)


def names(storage: Storage) -> set[str]:
    return {re.split("[/#]", uri)[-1] for uri in column(storage.images, "uri")}


def a_week_passes(storage: Storage) -> None:
    """What was missed is a week older."""
    for row in lance.dataset(storage.missing).to_table().to_pylist():
        since = (row["since"] - timedelta(days=7)).isoformat().replace("+00:00", "Z")
        update(storage.missing, {"since": f"cast('{since}' as timestamp)"}, f"uri = '{row['uri']}'")


def test_what_left_the_source_is_forgotten_after_the_grace_period(source: Path, storage: Storage) -> None:
    ingest(source, storage)
    (source / "a" / "red.png").unlink()
    (source / "a" / "two.tar").unlink()
    before = datetime.now(UTC)
    first = ingest(source, storage)
    assert (first.missing, first.left, first.total) == (2, 0, 10)
    rows = lance.dataset(storage.missing).to_table().to_pylist()
    assert {Path(row["uri"]).name for row in rows} == {"red.png", "two.tar"}
    assert all(before <= row["since"] <= datetime.now(UTC) for row in rows)
    second = ingest(source, storage)
    assert (second.missing, second.left) == (2, 0)
    assert lance.dataset(storage.missing).to_table().to_pylist() == rows
    a_week_passes(storage)
    third = ingest(source, storage)
    assert (third.missing, third.left, third.total) == (0, 3, 7)
    assert column(storage.missing, "uri") == []
    assert {Path(uri).name for uri in column(storage.files, "uri")} == names(storage)
    draw("red", "disc").save(source / "a" / "red.png")
    assert ingest(source, storage).added == 1


def test_a_file_that_comes_back_in_time_is_kept(source: Path, storage: Storage) -> None:
    ingest(source, storage)
    (source / "a" / "red.png").rename(source.parent / "away.png")
    ingest(source, storage)
    a_week_passes(storage)
    (source.parent / "away.png").rename(source / "a" / "red.png")
    assert ingest(source, storage).missing == 0
    (source / "a" / "red.png").unlink()
    again = ingest(source, storage)
    assert (again.missing, again.left) == (1, 0)  # the period begins anew


def test_nothing_is_noted_unless_it_is_set(source: Path, storage: Storage) -> None:
    ingest(source, storage, images.Config())
    (source / "a" / "red.png").unlink()
    result = ingest(source, storage, images.Config())
    assert (result.missing, result.left, result.total) == (0, 0, 10)
    assert not Path(storage.missing).exists()


def test_a_run_of_one_folder_forgets_that_folders_files_only(source: Path, storage: Storage) -> None:
    ingest(source, storage)
    (source / "a" / "red.png").unlink()
    (source / "b" / "teal.png").unlink()
    at_once = images.Config(mirror_after_days=0)
    assert ingest(source, storage, at_once, folder="a").left == 1
    assert "teal.png" in names(storage)
    assert ingest(source, storage, at_once, folder="b").left == 1
    assert "teal.png" not in names(storage)


def test_a_source_that_looks_empty_forgets_nothing(source: Path, storage: Storage) -> None:
    ingest(source, storage)
    (source / "a").rename(source.parent / "away")
    (source / "a").mkdir()
    assert ingest(source, storage).missing == 5
    a_week_passes(storage)
    said = "6 of the 10 images of .* have been missing for 7 days, too many .* `clipgen forget --missing"
    with pytest.raises(ClipgenError, match=said):
        ingest(source, storage)
    with pytest.raises(ClipgenError, match="6 of the 6 images of a .* `clipgen prune a --source"):
        ingest(source, storage, folder="a")
    assert len(names(storage)) == 10
    (source / "a").rmdir()
    (source.parent / "away").rename(source / "a")
    assert (ingest(source, storage).missing, len(names(storage))) == (0, 10)
    for folder in ("a", "b"):
        (source / folder).rename(source.parent / folder)
    with pytest.raises(ClipgenError, match="is empty"):
        ingest(source, storage, images.Config(mirror_after_days=0))
    assert len(names(storage)) == 10


def test_files_that_were_only_renamed_may_all_go(source: Path, storage: Storage) -> None:
    ingest(source, storage)
    (source / "a").rename(source / "c")
    (source / "b").rename(source / "d")
    renamed = ingest(source, storage, images.Config(mirror_after_days=0))
    assert (renamed.added, renamed.left, renamed.total) == (0, 0, 10)
    rows = lance.dataset(storage.images).to_table(columns=["uri", "folder"]).to_pylist()
    assert {row["folder"] for row in rows} == {"c", "d"}
    assert not {uri for uri in column(storage.files, "uri") if "/a/" in uri or "/b/" in uri}


def test_an_archive_whose_name_begins_with_that_of_a_lost_one_keeps_its_members(
    source: Path, storage: Storage
) -> None:
    write_tar(source / "a" / "two.tar#more.tar", {"teal.png": (source / "b" / "teal.png").read_bytes()})
    (source / "b" / "teal.png").unlink()
    ingest(source, storage)
    (source / "a" / "two.tar").unlink()
    assert ingest(source, storage, images.Config(mirror_after_days=0)).left == 2
    assert "teal.png" in names(storage)


def run_again(source: str, root: str) -> None:
    ingest(Path(source), Storage(root), images.Config(mirror_after_days=0))


@pytest.mark.slow
def test_a_run_that_is_killed_is_finished_by_the_next(source: Path, tmp_path: Path) -> None:
    before, rng, killed, trial, seconds = tmp_path / "before", random.Random(0), 0, 0, 0.0
    ingest(source, Storage(str(before)))
    for name in ("a/red.png", "a/two.tar", "b/teal.png"):
        (source / name).unlink()
    server = PROCESSES.Process(target=time.sleep, args=(0,))
    server.start()  # the first process of a test run waits for the server that forks it
    server.join()
    while killed < 6:
        out = Storage(str(tmp_path / f"{trial}"))
        shutil.copytree(before, out.root)
        process, began = PROCESSES.Process(target=run_again, args=(str(source), out.root)), time.monotonic()
        process.start()
        process.join(rng.uniform(0, seconds) if trial else None)
        seconds = seconds or time.monotonic() - began  # of the first, which is not disturbed
        if process.is_alive():
            os.kill(process.pid or 0, signal.SIGKILL)
            killed += 1
        process.join()
        run_again(str(source), out.root)
        assert len(names(out)) == 6 and len(column(out.files, "uri")) == 6
        assert column(out.missing, "uri") == column(out.copies, "uri") == []
        trial += 1
        assert trial < 50, f"only {killed} of {trial} runs were killed"
