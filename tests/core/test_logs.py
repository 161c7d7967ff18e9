import json
import subprocess
import sys

import pytest

from clipgen_core import logs
from clipgen_core.progress import track


def test_lines_are_text_or_json_with_the_ids_of_the_run(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CLIPGEN_LOG", raising=False)
    logs.line("half done", done=1)
    assert capfd.readouterr().err == "half done\n"
    monkeypatch.setenv("CLIPGEN_LOG", "json")
    with logs.bound(dagster_run="r1"), track("coding", 2, "pictures") as meter:
        meter.show(loss=0.5)
        meter.advance(2)
    (line,) = capfd.readouterr().err.splitlines()
    said = json.loads(line)
    assert (said["dagster_run"], said["work"], said["done"], said["loss"]) == ("r1", "coding", 2, 0.5)
    assert said["timestamp"].endswith("Z") and said["level"] == "info"
    logs.line("after")
    assert "dagster_run" not in json.loads(capfd.readouterr().err)


def test_a_process_takes_over_the_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPGEN_LOG", "json")
    with logs.bound(dagster_run="r1", asset="vqgan_checkpoint"):
        for name, value in logs.for_children().items():
            monkeypatch.setenv(name, value)
    code = "from clipgen_core import logs; logs.take_over(); logs.line('here')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = json.loads(done.stderr)
    assert (said["event"], said["dagster_run"], said["asset"]) == ("here", "r1", "vqgan_checkpoint")
