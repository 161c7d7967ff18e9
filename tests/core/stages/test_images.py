import os
from pathlib import Path

import lance
import pytest
from PIL import Image

from clipgen_core.data.tables import column
from clipgen_core.errors import ClipgenError
from clipgen_core.stages import images
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker
from tests.conftest import draw

CONFIG = images.Config()


def ingest(source: Path | str, storage: Storage, config: images.Config = CONFIG) -> images.Result:
    return images.run(config, source=str(source), out=storage, tracker=NullTracker())


def test_two_ingests_leave_one_row_a_picture(pictures: Path, storage: Storage) -> None:
    first = ingest(pictures / "pictures", storage)
    second = ingest(pictures / "pictures", storage)
    assert (first.added, second.added) == (72, 0)
    assert first.total == second.total == 72 == len(set(column(storage.images, "id")))
    assert first.digest == second.digest


def test_rows_say_what_the_picture_is(storage: Storage, tmp_path: Path) -> None:
    folder = tmp_path / "bücher und häuser" / "日本"
    folder.mkdir(parents=True)
    draw("red", "disc").save(folder / "ein Bild.jpg", format="PNG")
    ingest(tmp_path / "bücher und häuser", storage)
    row = lance.dataset(storage.images).to_table().to_pylist()[0]
    assert row["uri"].endswith("bücher und häuser/日本/ein Bild.jpg")
    assert (row["folder"], row["format"], row["width"], row["height"]) == ("日本", "PNG", 32, 32)
    assert row["image"] == (folder / "ein Bild.jpg").read_bytes()


def test_the_same_picture_under_two_names_is_one_row(storage: Storage, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        draw("red", "disc").save(tmp_path / name)
    assert ingest(tmp_path, storage).total == 1


def test_unusable_files_are_listed_and_the_run_goes_on(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "mixed"
    source.mkdir()
    draw("red", "disc").save(source / "good.png")
    data = (source / "good.png").read_bytes()
    (source / "zero.png").write_bytes(b"")
    (source / "notes.txt").write_text("no picture")
    (source / "truncated.png").write_bytes(data[: len(data) // 2])
    Image.new("RGB", (1, 1)).save(source / "dot.png")
    Image.new("1", (20000, 20000)).save(source / "bomb.png")
    (source / "dangling.png").symlink_to(source / "nowhere.png")
    (source / ".hidden").write_bytes(b"")
    result = ingest(source, storage)
    assert result.total == 1
    reasons = {
        Path(row["uri"]).name: row["reason"] for row in lance.dataset(storage.rejects).to_table().to_pylist()
    }
    assert reasons == {
        "zero.png": "empty",
        "notes.txt": "not_an_image",
        "truncated.png": "damaged",
        "dot.png": "too_small",
        "bomb.png": "too_large",
        "dangling.png": "unreadable",
    }
    assert result.found == 7
    assert result.reject_share == pytest.approx(6 / 7)
    again = ingest(source, storage)
    assert lance.dataset(storage.rejects).count_rows() == 6
    assert again.rejects == result.rejects


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to drop rights")
def test_a_file_without_read_rights_is_a_reject(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "rights"
    source.mkdir()
    draw("red", "disc").save(source / "good.png")
    draw("blue", "disc").save(source / "secret.png")
    (source / "secret.png").chmod(0)
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.owner() == "root" and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    pid = os.fork()
    if pid == 0:
        try:
            os.setegid(65534)
            os.seteuid(65534)
            outcome = images._read_file(CONFIG, *_listed(source))
            os._exit(0 if outcome.get("reason") == "unreadable" else 1)
        except BaseException:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0


def _listed(source: Path) -> tuple[object, str, str]:
    filesystem, files, folder = images.list_files(str(source))
    return filesystem, next(f for f in files if f.endswith("secret.png")), folder


def test_bad_sources_are_one_sentence(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(ClipgenError, match="none does not exist: check the path"):
        ingest(tmp_path / "none", storage)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ClipgenError, match="is empty: put pictures into it"):
        ingest(empty, storage)
    (empty / "notes.txt").write_text("x")
    with pytest.raises(ClipgenError, match="is a file: name the folder"):
        ingest(empty / "notes.txt", storage)
    with pytest.raises(ClipgenError, match="none of the 1 files under .* is a usable picture"):
        ingest(empty, storage)


def test_preview_shows_the_table(pipeline: Storage) -> None:
    sheet = images.preview(pipeline.images, count=24, size=16)
    assert sheet.size == (12 * 16 + 11 * 2, 2 * 16 + 2)
    assert len(set(sheet.get_flattened_data())) > 5
