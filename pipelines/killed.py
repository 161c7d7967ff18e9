"""Mark runs that were killed as failed: each would hold a slot of the pool `gpu`, and the next run wait.

In:  DAGSTER_HOME of one machine or container, where a process id says which run still lives
Run: `python -m pipelines.killed`; `make demo`, `make judge` and `make ui` do it first, and in Compose the
     container of the code location does, whose processes the runs are: `--list` before it starts anything
     that could have a lost run's number, and with the ids that this printed once the location can be reached
"""

import os
import sys
from pathlib import Path

import dagster as dg
import psutil

UNDER_WAY = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]


def killed(instance: dg.DagsterInstance) -> list[str]:
    """The ids of the runs that count as under way but have no process any more."""
    under_way = instance.get_runs(dg.RunsFilter(statuses=UNDER_WAY))
    return [run.run_id for run in under_way if not _lives(instance, run.run_id)]


def end(instance: dg.DagsterInstance, run_ids: list[str]) -> list[str]:
    """Mark runs as failed and free their slots.

    Args:
        instance: The instance of the runs.
        run_ids: Runs that were killed. Those that have ended since are left alone.

    Returns:
        The ids of the runs that are failed now.
    """
    ended = instance.get_runs(dg.RunsFilter(run_ids=run_ids, statuses=UNDER_WAY)) if run_ids else []
    for run in ended:
        instance.report_run_failed(run, "its process was killed")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return [run.run_id for run in ended]


def _lives(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether a process that the run's events name is there; also where they name none yet."""
    events = instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    named = [
        int(str(entry.dagster_event.engine_event_data.metadata["pid"].value))
        for entry in events
        if entry.dagster_event and "pid" in entry.dagster_event.engine_event_data.metadata
    ]
    return not named or any(_belongs_to(instance, pid) for pid in named)


def _belongs_to(instance: dg.DagsterInstance, pid: int) -> bool:
    """Whether a process with this id runs for the instance, other than this process and those it runs in.

    The time at which it began is not compared with the event's: the clock may have been set in between.
    """
    this = psutil.Process()
    try:
        process = psutil.Process(pid)
        home = process.environ().get("DAGSTER_HOME", "")
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # another user's: it may be the run's
        return True
    same = Path(home).resolve() == Path(instance.root_directory).resolve()
    return same and process not in (this, *this.parents())


if __name__ == "__main__":
    if not os.environ.get("DAGSTER_HOME"):
        sys.exit("DAGSTER_HOME is not set: set it to the folder of the Dagster instance, as `make` does")
    with dg.DagsterInstance.get() as instance:
        if sys.argv[1:] == ["--list"]:
            print(*killed(instance))
            sys.exit()
        for run_id in end(instance, sys.argv[1:] or killed(instance)):
            print(
                f"run {run_id} was killed: it counts as failed now, and the next goes on from its checkpoint"
            )
