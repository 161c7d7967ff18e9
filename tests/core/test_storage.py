import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipgen_core import storage
from clipgen_core.errors import ClipgenError
from clipgen_core.storage import Storage


@given(st.text(max_size=12))
def test_no_path_part_leaves_the_root(part: str) -> None:
    root = Storage("/data/root")
    try:
        path = Path(root.path("reports", part))
    except ClipgenError:
        return
    assert path.resolve().parent == Path("/data/root/reports")


@pytest.mark.parametrize("part", ["..", ".", "", "a/b", "a\\b", "a\0b", "a b"])
def test_unsafe_parts_are_refused(part: str) -> None:
    with pytest.raises(ClipgenError, match="no safe file name"):
        Storage("/data").path(part)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "s3://x/y", "", "..\\x"])
def test_files_that_data_names_stay_inside(name: str) -> None:
    assert storage.inside("/data/", "a b/ü.png") == "/data/a b/ü.png"
    with pytest.raises(ClipgenError, match="leaves the folder /data"):
        storage.inside("/data", name)


def test_drafts_of_a_killed_process_are_cleared(tmp_path: Path) -> None:
    (tmp_path / ".draft-abc" / "checkpoint").mkdir(parents=True)
    (tmp_path / "step-1").mkdir()
    storage.clear_drafts(str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]


def test_pointer_round_trip_and_what_is_missing(storage: Storage) -> None:
    with pytest.raises(ClipgenError, match="there is no vqgan .* which tokens needs"):
        storage.current("vqgan", "tokens")
    storage.publish_current("vqgan", "/somewhere/step-1", "abc")
    assert storage.current("vqgan", "tokens").path == "/somewhere/step-1"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a" / "file"
    storage.write_bytes(str(file), b"old")

    def fail(self: Path, target: Path) -> None:
        raise OSError("disk gone")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk gone"):
        storage.write_bytes(str(file), b"new")
    assert file.read_bytes() == b"old"


@pytest.mark.parametrize("scheme", ["", "memory:/"])
def test_folders_are_published_and_read_back(tmp_path: Path, scheme: str) -> None:
    url = f"{scheme}{tmp_path}/run/step-1"
    for content in (b"1", b"2"):
        with storage.draft_folder(url) as scratch:
            draft = Path(scratch) / "draft"
            (draft / "sub").mkdir(parents=True)
            (draft / "sub" / "data").write_bytes(content)
            (draft / "done").write_bytes(b"yes")
            storage.publish_folder(draft, url, "done")
        assert (storage.local_copy(url) / "sub" / "data").read_bytes() == content
    assert storage.read_bytes(f"{url}/sub/data") == b"2"
    assert storage.list_folder(f"{scheme}{tmp_path}/run") == ["step-1"]
    assert storage.local_copy(f"{url}/sub/data").name == "data"
    storage.remove_folder(url, "done")
    assert not storage.exists(f"{url}/done")


def test_local_copies_unused_for_a_day_are_removed_by_the_next_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("a", "b", "c"):
        storage.write_bytes(f"memory:/{tmp_path}/{name}", name.encode())
    unused, used = storage.local_copy(f"memory:/{tmp_path}/a"), storage.local_copy(f"memory:/{tmp_path}/b")
    for copy in (unused, used):
        os.utime(copy.parent, (0, 0))
    assert storage.local_copy(f"memory:/{tmp_path}/b") == used
    assert storage.local_copy(f"memory:/{tmp_path}/c").read_bytes() == b"c"
    assert used.read_bytes() == b"b"
    assert not unused.exists()
