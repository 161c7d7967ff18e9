import errno
import io
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import fsspec
import pytest
from click.testing import Result
from typer.testing import CliRunner

from clipgen_core import filesystem, stores
from clipgen_core.cli import app, data
from clipgen_core.cli.faults import fault


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(filesystem, "ATTEMPTS", 1)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def refused(*args: str) -> str:
    result: Result = CliRunner().invoke(app, [*args])
    assert result.exit_code == 2, (result.output, result.exception)
    said = re.sub("^(listing|embedding) .*\n", "", result.output, flags=re.MULTILINE)
    assert said.count("\n") == 1 and ".rs:" not in said
    return said


def test_a_store_that_does_not_answer_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip_reference: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "unsaid")
    monkeypatch.setattr(stores, "PATIENCE", 0.2)
    for args in (
        ("embed", "s3://bucket/in", "--root", str(tmp_path / "root"), "--clip", clip_reference),
        ("stats", "--root", "s3://bucket/root"),
    ):
        said = refused(*args)
        assert said.startswith("error: the store at http://127.0.0.1:9 does not answer (Connection refused):")
        assert "check AWS_ENDPOINT_URL, and run again" in said and "unsaid" not in said


def test_a_store_that_goes_away_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts connections at first, and none afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        stores.require_answer("s3://bucket/root")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "unsaid")
    said = refused("stats", "--root", "s3://bucket/root")
    assert said.startswith("error: a table under s3://bucket/root could not be read or written (")
    assert "HTTP error" in said and "retries" not in said and "unsaid" not in said


def test_a_store_that_cannot_be_reached_is_called_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "ATTEMPTS", 8)
    monkeypatch.setattr(filesystem, "PATIENCE", 0.3)
    called = list[float]()

    def call(error: Exception) -> None:
        called.append(time.monotonic())
        raise error

    with pytest.raises(ConnectionRefusedError):
        filesystem.retried(call, ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"))
    assert 2 <= len(called) < 5
    called.clear()
    monkeypatch.setattr(filesystem, "ATTEMPTS", 5)
    with pytest.raises(ConnectionResetError):
        filesystem.retried(call, ConnectionResetError(errno.ECONNRESET, "reset"))
    assert len(called) == 5


def test_a_command_ends_with_its_sentence(tmp_path: Path) -> None:
    """Although a thread still waits, as those of clients of a store do."""
    code = (
        "import sys, time, threading\n"
        "from clipgen_core.cli import main\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "sys.argv = ['clipgen', 'stats', '--root', sys.argv[1]]\n"
        "main()"
    )
    given = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(given, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 2 and done.stderr.startswith("error: there is no table at"), done.stderr


def test_no_credentials_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip_reference: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        said = refused("embed", "s3://bucket/in", "--root", str(tmp_path / "root"), "--clip", clip_reference)
    assert "(Unable to locate credentials): set AWS_ACCESS_KEY_ID" in said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB, where mounting one is allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_and_one_that_is_read_only_are_one_sentence(
    small_disk: Path, pictures: Path, clip_reference: str
) -> None:
    root = str(small_disk / "root")
    embed = ["embed", str(pictures / "pictures"), "--root", root, "--clip", clip_reference]
    said = refused(*embed)
    assert said.startswith(f"error: a table under {root} could not be read or written (")
    assert "No space left on device (os error 28)" in said and "make room" in said
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    said = refused(*embed)
    assert "Read-only file system (os error 30)" in said and "): allow it, or name another place" in said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "/a/b could not be .* make room"),
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), "/a/b could .*denied.*: allow it"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/a/b"), "/a/b could not be .*: check the path"),
        (OSError("https://me:secret@host is away"), "s3://x could not .*https://host is away"),
        (ValueError("LanceError(IO): Generic S3 error: x, /a/lance.rs:1:2"), r"a table under r .*\(x\)"),
    ],
)
def test_a_fault_is_said_with_what_failed_and_what_to_do(error: Exception, said: str) -> None:
    assert re.match(said, fault(error, "r", ["s3://x"]) or "")


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fault(BrokenPipeError(errno.EPIPE, "Broken pipe"), None, []) is None
    for error in (
        ValueError("x"),
        KeyError("x"),
        TypeError("LanceError(Schema): x"),
        io.UnsupportedOperation(),
    ):

        def fail(*_: object, error: Exception = error) -> NoReturn:
            raise error

        monkeypatch.setattr(data, "last_root", fail)
        result = CliRunner().invoke(app, ["stats"])
        assert result.exit_code == 1 and result.exception is error
