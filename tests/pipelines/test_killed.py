import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.events import EngineEventData
from dagster._core.test_utils import freeze_time
from dagster._daemon.controller import RELOAD_WORKSPACE_INTERVAL
from dagster._daemon.monitoring.concurrency import execute_concurrency_slots_iteration

from pipelines.killed import end, killed
from tests.conftest import wait_for

INFRA = Path(__file__).parents[2] / "infra"
INSTANCE = INFRA / "dagster" / "local.yaml"


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
            assert killed(instance) == []
        finally:
            run.send_signal(signal.SIGKILL)
            run.wait()
        assert slots() == [run_id]
        assert killed(instance) == [run_id]
        assert end(instance, [run_id]) == [run_id]
        assert slots() == []
        assert killed(instance) == end(instance, [run_id]) == []
        made = instance.get_run_by_id(run_id)
        assert made is not None and made.status is dg.DagsterRunStatus.FAILURE


@contextmanager
def process(home: Path) -> Iterator[int]:
    """The id of a process with that DAGSTER_HOME."""
    command = [sys.executable, "-c", "print(flush=True); input()"]
    environment = os.environ | {"DAGSTER_HOME": str(home)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        assert started.stdout and started.stdout.readline()
        yield started.pid
        started.kill()


def under_way(instance: dg.DagsterInstance, pid: int, hours_ago: float = 0) -> str:
    """The id of a run that counts as started in a process, which its event named some hours ago."""
    run = instance.create_run_for_job(dg.GraphDefinition(name="nothing").to_job())
    for kind, data in (
        (dg.DagsterEventType.RUN_START, None),
        (dg.DagsterEventType.ENGINE_EVENT, EngineEventData({"pid": dg.MetadataValue.text(str(pid))})),
    ):
        event = dg.DagsterEvent(kind.value, run.job_name, event_specific_data=data)
        instance.report_dagster_event(event, run.run_id, timestamp=time.time() - 3600 * hours_ago)
    return run.run_id


def test_a_run_lives_though_the_clock_was_set_forward_after_its_event(tmp_path: Path) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance, process(tmp_path) as pid:
        run_id = under_way(instance, pid, hours_ago=1)  # the process began a moment ago
        assert killed(instance) == []
        run = instance.get_run_by_id(run_id)
        assert run is not None and run.status is dg.DagsterRunStatus.STARTED


def test_a_later_process_with_the_same_number_is_not_the_runs(tmp_path: Path) -> None:
    """In a restarted container the numbers begin anew, so that even this process may have the run's."""
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance, process(tmp_path / "other") as pid:
        ours = [under_way(instance, one) for one in (pid, os.getpid(), os.getppid())]
        assert sorted(killed(instance)) == sorted(ours)


def test_a_new_container_of_the_code_location_ends_the_runs_of_a_lost_one(tmp_path: Path) -> None:
    profiles, home = tmp_path / "profiles", tmp_path / "home"
    home.mkdir()
    profiles.mkdir()
    (profiles / "compose.yaml").write_bytes(INSTANCE.read_bytes())
    (home / "dagster.yaml").write_bytes(INSTANCE.read_bytes())
    with process(home) as lost:
        pass
    with dg.DagsterInstance.from_config(str(home)) as instance:
        run_id = under_way(instance, lost)
    settings = {"DAGSTER_HOME": str(home), "DAGSTER_PROFILE": "compose", "CLIPGEN_PROFILES": str(profiles)}
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    real = Path(sys.executable).with_name("dagster")
    for name, line in (
        ("dagster", f'[[ "$2" == grpc-health-check ]] || exec {real} "$@"'),  # it can be reached at once
        ("sleep", f'echo "$1" >> {tmp_path}/slept'),
    ):
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    for command, status in (
        (["dagster", "code-server", "--help"], dg.DagsterRunStatus.STARTED),
        (["dagster", "code-server", "start", "--help"], dg.DagsterRunStatus.FAILURE),
    ):
        entrypoint = [str(INFRA / "docker" / "entrypoint.sh"), *command]
        done = subprocess.run(
            entrypoint, env=os.environ | settings | {"PATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0 and "Usage" in done.stdout, done.stderr
        with dg.DagsterInstance.from_config(str(home)) as instance:
            run = instance.get_run_by_id(run_id)
            assert run is not None and run.status is status
    assert (
        int((tmp_path / "slept").read_text()) > RELOAD_WORKSPACE_INTERVAL
    )  # or the daemon starts none again


@pytest.mark.parametrize("profile", ["compose", "kubernetes"])
def test_the_daemon_frees_the_slot_of_a_run_that_ended_without_its_process(
    profile: str, tmp_path: Path
) -> None:
    """A run that does not answer a termination is marked as canceled by the daemon, which keeps its slot."""
    settings = yaml.safe_load((INFRA / "dagster" / f"{profile}.yaml").read_text())
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump({"run_monitoring": settings["run_monitoring"]}))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        storage = instance.event_log_storage
        storage.set_concurrency_slots("gpu", 1)
        run_id = under_way(instance, os.getpid())
        assert storage.claim_concurrency_slot("gpu", run_id, "step").is_claimed
        run = instance.get_run_by_id(run_id)
        assert run is not None
        instance.report_run_canceled(run)
        workspace: Any = SimpleNamespace(instance=instance)
        for hours, slots in ((0, [run_id]), (1, [])):
            with freeze_time(datetime.now(UTC) + timedelta(hours=hours)):
                list(execute_concurrency_slots_iteration(workspace, logging.getLogger()))
            assert [one.run_id for one in storage.get_concurrency_info("gpu").claimed_slots] == slots
