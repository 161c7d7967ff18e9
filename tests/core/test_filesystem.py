import os
from pathlib import Path

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import save_file

from clipgen_core import filesystem
from clipgen_core.downloads import local_copy
from clipgen_core.errors import ClipgenError


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "s3://x/y", "", "..\\x"])
def test_files_that_data_names_stay_inside(name: str) -> None:
    assert filesystem.inside("/data/", "a b/ü.png") == "/data/a b/ü.png"
    with pytest.raises(ClipgenError, match="leaves the folder /data"):
        filesystem.inside("/data", name)


def test_drafts_of_a_killed_process_are_cleared(tmp_path: Path) -> None:
    (tmp_path / ".draft-abc" / "checkpoint").mkdir(parents=True)
    (tmp_path / "step-1").mkdir()
    filesystem.clear_drafts(str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a" / "file"
    filesystem.write_bytes(str(file), b"old")

    def fail(self: Path, target: Path) -> None:
        raise OSError("disk gone")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk gone"):
        filesystem.write_bytes(str(file), b"new")
    assert [one.read_bytes() for one in file.parent.iterdir()] == [b"old"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_published_files_have_the_mode_of_new_files(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        for name in ("file", "folder"):
            with filesystem.draft_folder(str(tmp_path / name)) as scratch:
                draft = Path(scratch) / "draft"
                weights = draft / "sub" / "weights" if name == "folder" else draft
                weights.parent.mkdir(parents=True, exist_ok=True)
                save_file({"a": torch.zeros(2)}, weights)
                assert weights.stat().st_mode & 0o777 == 0o600
                if name == "folder":
                    filesystem.publish_folder(draft, str(tmp_path / name), "sub/weights")
                else:
                    filesystem.publish_file(draft, str(tmp_path / name))
    finally:
        os.umask(before)
    for file in (tmp_path / "file", tmp_path / "folder" / "sub" / "weights"):
        assert file.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("scheme", ["", "memory:/"])
def test_folders_are_published_and_read_back(tmp_path: Path, scheme: str) -> None:
    url = f"{scheme}{tmp_path}/run/step-1"
    for content in (b"1", b"2"):
        with filesystem.draft_folder(url) as scratch:
            draft = Path(scratch) / "draft"
            (draft / "sub").mkdir(parents=True)
            (draft / "sub" / "data").write_bytes(content)
            (draft / "done").write_bytes(b"yes")
            filesystem.publish_folder(draft, url, "done")
        assert (local_copy(url) / "sub" / "data").read_bytes() == content
    assert filesystem.read_bytes(f"{url}/sub/data") == b"2"
    assert filesystem.list_folder(f"{scheme}{tmp_path}/run") == ["step-1"]
    assert local_copy(f"{url}/sub/data").name == "data"
    filesystem.remove_folder(url, "done")
    assert not filesystem.exists(f"{url}/done")


def test_local_copies_unused_for_a_day_are_removed_by_the_next_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("a", "b", "c"):
        filesystem.write_bytes(f"memory:/{tmp_path}/{name}", name.encode())
    unused, used = (
        local_copy(f"memory:/{tmp_path}/a"),
        local_copy(f"memory:/{tmp_path}/b"),
    )
    for copy in (unused, used):
        os.utime(copy.parent, (0, 0))
    assert local_copy(f"memory:/{tmp_path}/b") == used
    assert local_copy(f"memory:/{tmp_path}/c").read_bytes() == b"c"
    assert used.read_bytes() == b"b"
    assert not unused.exists()


def test_a_copy_that_lost_bytes_or_files_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(filesystem, "ATTEMPTS", 1)
    folder = f"memory:/{tmp_path}/step-1"
    for name in ("model", "sub/state"):
        filesystem.write_bytes(f"{folder}/{name}", b"0123456789")
    copy = local_copy(folder)
    (copy / "model").write_bytes(b"0123")
    assert (local_copy(folder) / "model").read_bytes() == b"0123456789"
    (copy / "sub" / "state").unlink()
    assert (local_copy(folder) / "sub" / "state").read_bytes() == b"0123456789"
    file = local_copy(f"{folder}/model")
    file.write_bytes(b"")
    assert local_copy(f"{folder}/model").read_bytes() == b"0123456789"

    def cut(memory: MemoryFileSystem, path: str, draft: str, **_: object) -> None:
        Path(draft).write_bytes(b"0")

    monkeypatch.setattr(MemoryFileSystem, "get", cut)
    file.unlink()
    with pytest.raises(OSError, match="model was cut short"):
        local_copy(f"{folder}/model")
    assert not file.exists()
