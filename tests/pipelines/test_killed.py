import os
import signal
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml

from pipelines.killed import end_killed
from tests.conftest import wait_for

INSTANCE = Path(__file__).parents[2] / "infra" / "dagster" / "local.yaml"


def test_a_killed_run_is_failed_and_leaves_its_slot(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").write_bytes(INSTANCE.read_bytes())
    run_config = {
        "execution": {"config": {"in_process": {}}},
        "resources": {
            "storage": {"config": {"root": str(tmp_path / "root")}},
            "recipe": {"config": {"name": "quick"}},
            "mlflow": {"config": {"local_folder": str(tmp_path / "mlflow")}},
        },
        "ops": {
            "clip_checkpoint": {
                "config": {"captions": str(pictures / "captions.csv"), "train": {"steps": 100_000}}
            }
        },
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run_config))
    program = str(Path(sys.executable).parent / "dagster")
    words = [program, "job", "execute", "-m", "pipelines.definitions", "-j", "clip_training", "-c"]
    with dg.DagsterInstance.get() as instance:
        run = subprocess.Popen(
            [*words, str(tmp_path / "run.yaml")],
            env=os.environ | {"TQDM_DISABLE": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

        def slots() -> list[str]:
            return [
                slot.run_id for slot in instance.event_log_storage.get_concurrency_info("gpu").claimed_slots
            ]

        try:
            (run_id,) = wait_for(slots, "the step", alive=lambda: run.poll() is None)
            assert end_killed(instance) == []
        finally:
            run.send_signal(signal.SIGKILL)
            run.wait()
        assert slots() == [run_id]
        assert end_killed(instance) == [run_id]
        assert slots() == []
        assert end_killed(instance) == []
        made = instance.get_run_by_id(run_id)
        assert made is not None and made.status is dg.DagsterRunStatus.FAILURE
